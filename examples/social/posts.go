package main

import (
	"context"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// maxPost bounds a post, in bytes of UTF-8. Escaped it still fits in a line.
const maxPost = 2048

// newPosts returns the service that takes posts.
func newPosts() *service {
	return &service{socket: "S3", handlers: map[string]handler{
		"send_post_request": unary(func(ctx context.Context, c *conversation, req message) ([]string, error) {
			if err := wantLines(req, 3); err != nil {
				return nil, err
			}
			author, text, key := req.lines[0], req.lines[1], req.lines[2]
			if err := checkPost(text); err != nil {
				return nil, err
			}
			now := time.Now().UTC().Format(time.RFC3339)
			return c.call(ctx, "P8", message{
				kind: "add_post_request", id: req.id, lines: []string{author, now, text, key},
			})
		}),
	}}
}

// checkPost checks the form of a post.
func checkPost(text string) error {
	switch {
	case strings.TrimSpace(text) == "":
		return badRequest("a post is not empty")
	case len(text) > maxPost:
		return &statusError{statusTooLarge, "a post has at most " + strconv.Itoa(maxPost) + " bytes"}
	case strings.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' }):
		return badRequest("a post has no control characters but line ends and tabs")
	}
	return nil
}

// newLast10Posts returns the service that retrieves the last posts.
func newLast10Posts() *service {
	return &service{socket: "S4", handlers: map[string]handler{
		"retrieve_last_10_posts_request": unary(func(ctx context.Context, c *conversation, req message) ([]string, error) {
			if err := wantLines(req, 0); err != nil {
				return nil, err
			}
			return c.call(ctx, "P9", message{kind: "last_posts_request", id: req.id, lines: []string{"10"}})
		}),
	}}
}

// newPostsDB returns the storage service of the posts, which keeps them in
// dataDir/posts.db.
func newPostsDB(dataDir string) (*service, error) {
	db, err := openDB(filepath.Join(dataDir, "posts.db"), `CREATE TABLE IF NOT EXISTS posts (
		id      INTEGER PRIMARY KEY AUTOINCREMENT,
		author  TEXT NOT NULL,
		time    TEXT NOT NULL,
		text    TEXT NOT NULL,
		request TEXT NOT NULL UNIQUE -- key of the request that added the post
	) STRICT`)
	if err != nil {
		return nil, err
	}
	add := func(ctx context.Context, _ *conversation, req message) ([]string, error) {
		if err := wantLines(req, 4); err != nil {
			return nil, err
		}
		_, err := db.ExecContext(ctx, `INSERT INTO posts (author, time, text, request) VALUES (?, ?, ?, ?)
			ON CONFLICT (request) DO NOTHING`, req.lines[0], req.lines[1], req.lines[2], req.lines[3])
		return nil, err
	}
	last := func(ctx context.Context, _ *conversation, req message) ([]string, error) {
		if err := wantLines(req, 1); err != nil {
			return nil, err
		}
		n, err := strconv.Atoi(req.lines[0])
		if err != nil || n < 1 || n > maxLines/3 {
			return nil, badRequest("%q is not a number of posts from 1 to %d", req.lines[0], maxLines/3)
		}
		rows, err := db.QueryContext(ctx, `SELECT author, time, text FROM posts ORDER BY id DESC LIMIT ?`, n)
		if err != nil {
			return nil, err
		}
		defer rows.Close()
		var lines []string
		for rows.Next() {
			var author, at, text string
			if err := rows.Scan(&author, &at, &text); err != nil {
				return nil, err
			}
			lines = append(lines, author, at, text)
		}
		return lines, rows.Err()
	}
	return &service{socket: "S7", close: db.Close, handlers: map[string]handler{
		"add_post_request":   unary(add),
		"last_posts_request": unary(last),
	}}, nil
}

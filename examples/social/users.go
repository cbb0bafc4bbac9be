package main

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"unicode"

	"golang.org/x/crypto/argon2"
	_ "modernc.org/sqlite" // the driver "sqlite"
)

// Bounds of a user's name and password, in bytes of UTF-8.
const (
	maxUser     = 64
	maxPassword = 1024
)

// hashesAtOnce bounds how many passwords one instance hashes at a time, and so
// the memory for it.
const hashesAtOnce = 4

var (
	errWrongLogin = &statusError{statusUnauthorized, "wrong user or password"}
	errTakenUser  = &statusError{statusConflict, "this user name is taken"}
)

func badRequest(format string, args ...any) error {
	return &statusError{statusBadRequest, fmt.Sprintf(format, args...)}
}

// newRegister returns the service that registers users.
func newRegister(cost hashCost) *service {
	h := newHasher(cost)
	return &service{socket: "S1", handlers: map[string]handler{
		"registration_request": unary(func(ctx context.Context, c *conversation, req message) ([]string, error) {
			if err := wantLines(req, 3); err != nil {
				return nil, err
			}
			user, password, key := req.lines[0], req.lines[1], req.lines[2]
			if err := checkUser(user, password); err != nil {
				return nil, err
			}
			hash, err := h.hash(ctx, password)
			if err != nil {
				return nil, err
			}
			return c.call(ctx, "P6", message{kind: "add_user_request", id: req.id, lines: []string{user, hash, key}})
		}),
	}}
}

// newLogin returns the service that checks passwords. What it answers, and
// when, does not tell an unknown user from a wrong password.
func newLogin(cost hashCost) *service {
	h := newHasher(cost)
	return &service{socket: "S2", handlers: map[string]handler{
		"login_request": unary(func(ctx context.Context, c *conversation, req message) ([]string, error) {
			if err := wantLines(req, 2); err != nil {
				return nil, err
			}
			user, password := req.lines[0], req.lines[1]
			if checkUser(user, password) != nil {
				return nil, errWrongLogin
			}
			lines, err := c.call(ctx, "P7", message{kind: "get_user_request", id: req.id, lines: []string{user}})
			var e *statusError
			known := true
			if errors.As(err, &e) && e.status == statusNotFound {
				known, lines, err = false, []string{h.nobody}, nil
			}
			if err != nil {
				return nil, err
			}
			if len(lines) != 1 {
				return nil, &statusError{statusBadGateway, "get_user_response without a hash"}
			}
			same, err := h.matches(ctx, password, lines[0])
			if err != nil {
				return nil, err
			}
			if !same || !known {
				return nil, errWrongLogin
			}
			return nil, nil
		}),
	}}
}

// checkUser checks the form of a name and a password.
func checkUser(user, password string) error {
	switch {
	case user == "" || len(user) > maxUser:
		return badRequest("a user name has 1 to %d bytes", maxUser)
	case strings.TrimSpace(user) != user || strings.ContainsFunc(user, notPrintable):
		return badRequest("a user name has printable characters only, and no space at its ends")
	case password == "" || len(password) > maxPassword:
		return badRequest("a password has 1 to %d bytes", maxPassword)
	}
	return nil
}

func notPrintable(r rune) bool { return !unicode.IsPrint(r) }

// A hashCost is what one hash of a password costs with Argon2id.
type hashCost struct {
	time    uint32 // passes
	memory  uint32 // KiB
	threads uint8
}

// A hasher turns passwords into what is stored of them, and compares them.
type hasher struct {
	cost   hashCost
	nobody string        // a hash of the same cost, of no password
	slots  chan struct{} // one for each hash under way
}

const hashForm = "$argon2id$v=19$m=%d,t=%d,p=%d$%s$%s" // the usual text form

func newHasher(cost hashCost) *hasher {
	return &hasher{
		cost:   cost,
		nobody: formatHash(cost, make([]byte, 16), make([]byte, 32)),
		slots:  make(chan struct{}, hashesAtOnce),
	}
}

// hash returns the text to store for a password.
func (h *hasher) hash(ctx context.Context, password string) (string, error) {
	salt := make([]byte, 16)
	rand.Read(salt)
	key, err := h.key(ctx, password, salt, h.cost)
	if err != nil {
		return "", err
	}
	return formatHash(h.cost, salt, key), nil
}

// matches reports whether text was stored for the password.
func (h *hasher) matches(ctx context.Context, password, text string) (bool, error) {
	cost, salt, want, err := parseHash(text)
	if err != nil {
		return false, err
	}
	key, err := h.key(ctx, password, salt, cost)
	if err != nil {
		return false, err
	}
	return subtle.ConstantTimeCompare(key, want) == 1, nil
}

func (h *hasher) key(ctx context.Context, password string, salt []byte, cost hashCost) ([]byte, error) {
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	case <-ctx.Done():
		return nil, &statusError{statusUnavailable, "shutting down"}
	}
	return argon2.IDKey([]byte(password), salt, cost.time, cost.memory, cost.threads, 32), nil
}

func formatHash(cost hashCost, salt, key []byte) string {
	b64 := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf(hashForm, cost.memory, cost.time, cost.threads, b64(salt), b64(key))
}

// parseHash undoes formatHash. It bounds the cost: the text comes from outside
// the instance.
func parseHash(text string) (cost hashCost, salt, key []byte, err error) {
	bad := errors.New("stored password hash is damaged")
	parts := strings.Split(text, "$")
	if len(parts) != 6 {
		return cost, nil, nil, bad
	}
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &cost.memory, &cost.time, &cost.threads); err != nil {
		return cost, nil, nil, bad
	}
	if cost.memory > 1<<20 || cost.time == 0 || cost.time > 64 || cost.threads == 0 {
		return cost, nil, nil, bad
	}
	salt, errSalt := base64.RawStdEncoding.DecodeString(parts[4])
	key, errKey := base64.RawStdEncoding.DecodeString(parts[5])
	if errSalt != nil || errKey != nil || formatHash(cost, salt, key) != text {
		return cost, nil, nil, bad
	}
	return cost, salt, key, nil
}

// newUsersDB returns the storage service of the users, which keeps them in
// dataDir/users.db.
func newUsersDB(dataDir string) (*service, error) {
	db, err := openDB(filepath.Join(dataDir, "users.db"), `CREATE TABLE IF NOT EXISTS users (
		name    TEXT PRIMARY KEY,
		hash    TEXT NOT NULL,
		request TEXT NOT NULL -- key of the request that added the user
	) STRICT`)
	if err != nil {
		return nil, err
	}
	add := func(ctx context.Context, _ *conversation, req message) ([]string, error) {
		if err := wantLines(req, 3); err != nil {
			return nil, err
		}
		name, hash, key := req.lines[0], req.lines[1], req.lines[2]
		var first string
		err := db.QueryRowContext(ctx, `INSERT INTO users (name, hash, request) VALUES (?, ?, ?)
			ON CONFLICT (name) DO UPDATE SET name = name RETURNING request`, name, hash, key).Scan(&first)
		if err == nil && first != key {
			return nil, errTakenUser
		}
		return nil, err
	}
	get := func(ctx context.Context, _ *conversation, req message) ([]string, error) {
		if err := wantLines(req, 1); err != nil {
			return nil, err
		}
		var hash string
		err := db.QueryRowContext(ctx, `SELECT hash FROM users WHERE name = ?`, req.lines[0]).Scan(&hash)
		if errors.Is(err, sql.ErrNoRows) {
			return nil, &statusError{statusNotFound, "no such user"}
		}
		return []string{hash}, err
	}
	return &service{socket: "S6", close: db.Close, handlers: map[string]handler{
		"add_user_request": unary(add),
		"get_user_request": unary(get),
	}}, nil
}

// openDB opens the SQLite database in a file, and makes it and its directory
// where they are not there yet. What it has committed survives a crash.
func openDB(file, schema string) (*sql.DB, error) {
	abs, err := filepath.Abs(file)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(abs), 0o700); err != nil {
		return nil, err
	}
	path := filepath.ToSlash(abs)
	if !strings.HasPrefix(path, "/") {
		path = "/" + path // a drive letter
	}
	u := url.URL{Scheme: "file", Path: path, RawQuery: url.Values{
		"_pragma": {"busy_timeout(5000)", "journal_mode(WAL)", "synchronous(FULL)"},
		"_txlock": {"immediate"},
	}.Encode()}
	db, err := sql.Open("sqlite", u.String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(4)
	if _, err := db.Exec(schema); err != nil {
		db.Close()
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return db, nil
}

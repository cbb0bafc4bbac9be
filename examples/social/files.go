package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

// Bounds of a file.
const (
	maxFile     = 1 << 30 // bytes
	maxFileName = 200     // bytes of UTF-8, less than any file system's own bound
)

// uploadPrefix begins the names of files that are not complete. No user can
// give a file a name that begins with a dot.
const uploadPrefix = ".upload-"

// newFileTransfer returns the service between users and the file store.
func newFileTransfer() *service {
	return &service{socket: "S5", handlers: map[string]handler{
		"send_file_request": relayUpload("P10"),
		"get_file_request":  relayDownload("P10"),
	}}
}

// relayUpload passes a file on through a plug, one chunk after the other. When
// the session breaks on the way, the rest of the file is thrown away, so that
// the connection can go on after the answer.
func relayUpload(plug string) handler {
	return func(ctx context.Context, c *conversation, req message) error {
		up, err := newUpload(req)
		if err != nil {
			return c.fail(req, err)
		}
		m, err := c.open(ctx, plug, req)
		if err != nil {
			return c.fail(req, err)
		}
		if m.status != statusContinue {
			return c.user.send(m)
		}
		if err := c.user.send(m); err != nil {
			return err
		}
		s := c.sessions[plug]
		var failed error
		for !up.ended {
			m, err := c.user.receive(ioTimeout)
			if err != nil {
				return err
			}
			if err := up.take(m); err != nil {
				return err
			}
			if failed == nil {
				failed = pass(m, s, up.ended || !c.user.pending())
			}
		}
		if failed == nil {
			m, failed = s.answer(req, answerTimeout)
		}
		if failed == nil && m.status == statusContinue {
			failed = m.wrong("continues an upload that has ended")
		}
		if failed != nil {
			return c.fail(req, c.broken(plug, failed))
		}
		return c.user.send(m)
	}
}

// relayDownload passes a file on from a plug, one chunk after the other.
func relayDownload(plug string) handler {
	return func(ctx context.Context, c *conversation, req message) error {
		m, err := c.open(ctx, plug, req)
		if err != nil {
			return c.fail(req, err)
		}
		s := c.sessions[plug]
		for streaming := m.status == statusContinue; streaming; {
			if err := pass(m, c.user, !s.pending()); err != nil {
				return err
			}
			if m, err = s.receive(ioTimeout); err == nil {
				streaming, err = inDownload(m, req)
			}
			if err != nil {
				return c.fail(req, c.broken(plug, err))
			}
		}
		return c.user.send(m)
	}
}

// pass sends a message on, at once or with those that follow it.
func pass(m message, to *link, now bool) error {
	if now {
		return to.send(m)
	}
	return to.queue(m)
}

// inDownload checks a message that follows the first response to a
// get_file_request. It reports whether another one follows.
func inDownload(m, req message) (more bool, err error) {
	switch {
	case m.id != req.id:
		return false, m.wrong("has another message id than its request")
	case m.kind == "get_file_chunk":
		_, err := chunkLen(m)
		return true, err
	case m.kind == responseKind(req.kind) && m.status != statusContinue:
		return false, nil
	default:
		return false, m.wrong("want get_file_chunk or the last get_file_response")
	}
}

// An upload follows the messages of one upload and holds them to what the
// request declared.
type upload struct {
	id    int64
	name  string
	size  int64  // declared, in bytes
	got   int64  // bytes in the chunks so far
	sum   string // SHA-256 that the end declared
	ended bool
}

// newUpload checks a send_file_request.
func newUpload(req message) (*upload, error) {
	if err := wantLines(req, 2); err != nil {
		return nil, err
	}
	if err := checkFileName(req.lines[0]); err != nil {
		return nil, err
	}
	size, err := parseSize(req.lines[1])
	if err != nil {
		return nil, err
	}
	if size > maxFile {
		return nil, &statusError{statusTooLarge, fmt.Sprintf("a file has at most %d bytes", maxFile)}
	}
	return &upload{id: req.id, name: req.lines[0], size: size}, nil
}

// take checks the next message. Its error ends the connection: where there are
// more bytes than were declared, nothing says when they end.
func (u *upload) take(m message) error {
	if m.id != u.id {
		return m.wrong("has another message id than its request")
	}
	switch m.kind {
	case "send_file_chunk":
		n, err := chunkLen(m)
		if err != nil {
			return err
		}
		if u.got += n; u.got > u.size {
			return m.wrong(fmt.Sprintf("exceeds the declared size of %d bytes", u.size))
		}
	case "send_file_end":
		if len(m.lines) != 1 {
			return m.wrong("want exactly Line_1")
		}
		u.sum, u.ended = m.lines[0], true
	default:
		return m.wrong("want send_file_chunk or send_file_end")
	}
	return nil
}

// check reports whether an upload that has ended is what was declared.
func (u *upload) check(sum hash.Hash) error {
	if u.got != u.size {
		return badRequest("%d bytes arrived of %d declared", u.got, u.size)
	}
	if u.sum != hexSum(sum) {
		return badRequest("SHA-256 of what arrived differs from the declared one")
	}
	return nil
}

func hexSum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

func parseSize(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || strconv.FormatInt(n, 10) != s {
		return 0, badRequest("%q is not a size in bytes", clip(s, 32))
	}
	return n, nil
}

// checkFileName checks that a name is one on every operating system, and that
// it is not hidden.
func checkFileName(name string) error {
	switch {
	case name == "" || len(name) > maxFileName:
		return badRequest("a file name has 1 to %d bytes", maxFileName)
	case strings.HasPrefix(name, "."):
		return badRequest("a file name does not begin with a dot")
	case strings.HasSuffix(name, ".") || strings.TrimSpace(name) != name:
		return badRequest("a file name does not end with a dot, nor begin or end with a space")
	case strings.ContainsAny(name, `/\:*?"<>|`) || strings.ContainsFunc(name, notPrintable):
		return badRequest(`a file name has printable characters only, and none of / \ : * ? " < > |`)
	}
	return nil
}

// An hd is the file store: a directory that no name can lead out of.
type hd struct {
	root *os.Root
}

// newHD returns the storage service of the files, which keeps them in
// dataDir/files. Uploads that an earlier instance left incomplete are removed.
func newHD(dataDir string) (*service, error) {
	dir := filepath.Join(dataDir, "files")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	left, err := fs.Glob(root.FS(), uploadPrefix+"*")
	for _, name := range left {
		err = errors.Join(err, root.Remove(name))
	}
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	h := &hd{root}
	return &service{socket: "S8", close: root.Close, handlers: map[string]handler{
		"send_file_request": h.sendFile,
		"get_file_request":  h.getFile,
	}}, nil
}

// sendFile takes a file. It appears under its name when all of it has arrived,
// is what was declared, and is on disk.
func (h *hd) sendFile(_ context.Context, c *conversation, req message) error {
	up, err := newUpload(req)
	if err != nil {
		return c.fail(req, err)
	}
	temp := uploadPrefix + rand.Text()
	f, err := h.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return c.fail(req, diskError(err))
	}
	defer h.root.Remove(temp) // does nothing once it is renamed
	defer f.Close()           // an error matters only before the rename
	if err := c.user.send(req.response(statusContinue)); err != nil {
		return err
	}
	sum := sha256.New()
	both := io.MultiWriter(f, sum)
	var failed error
	for {
		m, err := c.user.receive(ioTimeout)
		if err != nil {
			return err
		}
		if err := up.take(m); err != nil {
			return err
		}
		if up.ended {
			break
		}
		data, err := chunkBytes(m)
		if err != nil {
			return err
		}
		if failed == nil { // else throw the rest away, and answer at its end
			_, failed = both.Write(data)
		}
	}
	if failed == nil {
		failed = up.check(sum)
	}
	if failed == nil {
		failed = h.keep(f, temp, up.name)
	}
	if failed != nil {
		return c.fail(req, diskError(failed))
	}
	return c.user.send(req.response(statusOK, hexSum(sum)))
}

// keep puts a complete file on disk under its name, in place of an older one.
func (h *hd) keep(f *os.File, temp, name string) error {
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := h.root.Rename(temp, name); err != nil {
		return err
	}
	if runtime.GOOS == "windows" {
		return nil // which cannot sync a directory
	}
	dir, err := h.root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func diskError(err error) error {
	if errors.Is(err, syscall.ENOSPC) {
		return &statusError{statusDiskFull, "no space left for the file"}
	}
	return err
}

// getFile streams a file.
func (h *hd) getFile(_ context.Context, c *conversation, req message) error {
	f, size, err := h.find(req)
	if err != nil {
		return c.fail(req, err)
	}
	defer f.Close()
	if err := c.user.send(req.response(statusContinue, strconv.FormatInt(size, 10))); err != nil {
		return err
	}
	sum := sha256.New()
	buf := make([]byte, chunkSize)
	for left := size; left > 0; {
		data := buf[:min(left, chunkSize)]
		if _, err := io.ReadFull(f, data); err != nil {
			return c.fail(req, err)
		}
		sum.Write(data)
		if err := c.user.queue(chunk("get_file_chunk", req.id, data)); err != nil {
			return err
		}
		left -= int64(len(data))
	}
	return c.user.send(req.response(statusOK, hexSum(sum)))
}

// find opens the file that a get_file_request names.
func (h *hd) find(req message) (*os.File, int64, error) {
	if err := wantLines(req, 1); err != nil {
		return nil, 0, err
	}
	if err := checkFileName(req.lines[0]); err != nil {
		return nil, 0, err
	}
	f, err := h.root.Open(req.lines[0])
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, &statusError{statusNotFound, "no such file"}
	}
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &statusError{statusNotFound, "no such file"}
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

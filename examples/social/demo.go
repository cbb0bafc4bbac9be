package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
)

const (
	demoPosts    = 12
	demoFileSize = 8 << 20
	demoKillAt   = 7 // before this post, the process of the service posts is killed
)

// A narrator prints lines with the time since it began.
type narrator struct {
	mu    sync.Mutex
	out   io.Writer
	began time.Time
}

func (n *narrator) say(who, format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	fmt.Fprintf(n.out, "%6.3fs  %-4s  %s\n", time.Since(n.began).Seconds(), who, fmt.Sprintf(format, args...))
}

// runDemo starts a mesh, plays one user's session on it, and ends it again.
func runDemo(ctx context.Context, out io.Writer, log hclog.Logger) (err error) {
	dataDir, remove, err := makeDataDir("")
	if err != nil {
		return err
	}
	defer remove()

	n := &narrator{out: out, began: time.Now()}
	c, stop, err := deploy(ctx, dataDir, false, n, log)
	if err != nil {
		return err
	}
	err = playUser(ctx, c, n)
	if ctx.Err() != nil {
		err = errors.New("interrupted")
	} else if err != nil {
		fmt.Fprintln(out, "the services' output is:")
		printOutput(out, dataDir)
	}
	n.say("", "everything is shut down gracefully, from the gateway on")
	err = errors.Join(err, stop())
	if left := c.left(); len(left) > 0 {
		err = errors.Join(err, fmt.Errorf("processes are left: %v", left))
	}
	if err == nil {
		n.say("", "done: %d processes ran, none is left", len(c.pids))
	}
	return err
}

// deploy starts a deployment and deploys the graph on it. The function that it
// returns shuts everything down.
func deploy(ctx context.Context, dataDir string, keep bool, n *narrator, log hclog.Logger) (*deployment, func() error, error) {
	c, err := startDeployment(ctx, dataDir, keep, n, log)
	if err != nil {
		return nil, nil, err
	}
	var told sync.WaitGroup
	told.Go(func() { c.narrate(context.Background()) })
	stop := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), deployTimeout)
		defer cancel()
		err := errors.Join(c.manager.Undeploy(ctx, "social"), c.close())
		told.Wait()
		return err
	}
	if c.earlier.event > 0 {
		n.say("", "this goes on after event %d of the history", c.earlier.event)
	}
	n.say("", "a Manager and %d agents run in this process; the gateway of social is deployed", len(c.nodes))
	deployCtx, cancel := context.WithTimeout(ctx, deployTimeout)
	defer cancel()
	deployed := make(chan error, 1)
	go func() {
		if c.earlier.retiring {
			c.manager.Undeploy(deployCtx, "social") // it goes on; it may have come to its end
		}
		deployed <- c.manager.Deploy(deployCtx, "social")
	}()
	select {
	case err = <-deployed:
	case err = <-c.errs:
		cancel()
		<-deployed
	}
	if err != nil {
		stop()
		return nil, nil, err
	}
	return c, stop, nil
}

// playUser is one user's session through the gateway.
func playUser(ctx context.Context, c *deployment, n *narrator) error {
	user := func(format string, args ...any) { n.say("user", format, args...) }
	cl, err := dialSoon(ctx, c.gateway)
	if err != nil {
		return err
	}
	defer cl.close()
	user("connected to the gateway at %s", c.gateway)

	if err := cl.register("ann", "correct horse"); err != nil {
		return fmt.Errorf("register: %w", err)
	}
	user("registered as ann")
	if err := cl.login("ann", "wrong horse"); err == nil {
		return fmt.Errorf("a wrong password was taken")
	} else {
		user("a wrong password is refused: %v", err)
	}
	if err := cl.login("ann", "correct horse"); err != nil {
		return fmt.Errorf("login: %w", err)
	}
	user("logged in")

	for i := 1; i <= demoPosts; i++ {
		if i == demoKillAt {
			if err := killService(c, "posts", n); err != nil {
				return err
			}
		}
		if err := cl.sendPost("ann", fmt.Sprintf("post number %d", i)); err != nil {
			return fmt.Errorf("post %d: %w", i, err)
		}
		if i == 1 || i == demoKillAt || i == demoPosts {
			user("sent post %d of %d", i, demoPosts)
		}
	}
	posts, err := cl.last10()
	if err != nil {
		return fmt.Errorf("last 10 posts: %w", err)
	}
	if len(posts) != 10 || posts[0].text != "post number 12" || posts[9].text != "post number 3" {
		return fmt.Errorf("last 10 posts: got %d, %v", len(posts), posts)
	}
	user("read the last 10 posts: from %q to %q", posts[0].text, posts[9].text)

	sent := make([]byte, demoFileSize)
	rand.Read(sent)
	sum, err := cl.sendFile("photo.raw", bytes.NewReader(sent), int64(len(sent)))
	if err != nil {
		return fmt.Errorf("send file: %w", err)
	}
	user("sent a file of %d MiB, SHA-256 %.16s…", demoFileSize>>20, sum)
	var got bytes.Buffer
	if _, err := cl.getFile("photo.raw", &got); err != nil {
		return fmt.Errorf("get file: %w", err)
	}
	if !bytes.Equal(sent, got.Bytes()) {
		return fmt.Errorf("the file came back changed")
	}
	user("got it back, byte for byte the same")
	return nil
}

// dialSoon dials a gateway that was started just now: ready says that it runs,
// and it listens a moment later.
func dialSoon(ctx context.Context, addr string) (*client, error) {
	for wait := time.Millisecond; ; wait *= 2 {
		cl, err := dial(ctx, addr)
		if err == nil || !errors.Is(err, syscall.ECONNREFUSED) || wait > 5*time.Second {
			return cl, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// killService kills the process of one instance, as a crash would.
func killService(c *deployment, service string, n *narrator) error {
	i, err := c.instance(service)
	if err != nil {
		return err
	}
	p, err := os.FindProcess(c.pid(i.ID))
	if err == nil {
		err = p.Kill()
	}
	if err != nil {
		return fmt.Errorf("kill %s %d: %w", service, i.ID, err)
	}
	n.say("", "the process of %s %d, pid %d, is killed", service, i.ID, c.pid(i.ID))
	return nil
}

// printOutput copies what the services wrote to their standard error.
func printOutput(out io.Writer, dataDir string) {
	root, err := os.OpenRoot(dataDir)
	if err != nil {
		return
	}
	defer root.Close()
	dir, err := root.Open("output")
	if err != nil {
		return
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	for _, name := range names {
		if text, err := root.ReadFile("output/" + name); err == nil && len(text) > 0 {
			fmt.Fprintf(out, "%s: %s\n", name, text)
		}
	}
}

// runUp starts a mesh, or goes on with the one whose state is in dataDir, and
// keeps it up until ctx ends.
func runUp(ctx context.Context, dataDir string, out io.Writer, log hclog.Logger) error {
	keep := dataDir != ""
	dataDir, remove, err := makeDataDir(dataDir)
	if err != nil {
		return err
	}
	defer remove()
	n := &narrator{out: out, began: time.Now()}
	c, stop, err := deploy(ctx, dataDir, keep, n, log)
	if err != nil {
		return err
	}
	n.say("", "up: go run ./examples/social client registration -gateway %s -user ann -password …", c.gateway)
	n.say("", "data are in %s; interrupt to stop", dataDir)
	select {
	case <-ctx.Done():
	case err = <-c.errs:
	}
	n.say("", "everything is shut down gracefully, from the gateway on")
	return errors.Join(err, stop())
}

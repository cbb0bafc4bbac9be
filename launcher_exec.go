package ssmmp

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Environment variables that an instance is started with.
const (
	envAgent    = "SSMMP_AGENT"    // where its agent listens, "host:port"
	envSecret   = "SSMMP_SECRET"   // what proves to the agent who it is
	envInstance = "SSMMP_INSTANCE" // its id; with the secret, the mark of its processes
)

// sweepTime is how long the processes that an instance left behind are hunted.
const sweepTime = 5 * time.Second

// defaultPassEnv is what a program commonly cannot do without.
var defaultPassEnv = []string{
	"PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR",
}

// defaultPassEnvWindows joins defaultPassEnv on Windows.
var defaultPassEnvWindows = []string{
	"SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "PATHEXT", "TEMP", "TMP",
	"USERPROFILE", "APPDATA", "LOCALAPPDATA", "PROGRAMDATA",
}

// A LaunchError says which instance could not be started, and why.
type LaunchError struct {
	Service string
	ID      InstanceID
	Err     error
}

func (e *LaunchError) Error() string {
	return fmt.Sprintf("ssmmp: launch %q instance %d: %v", e.Service, e.ID, e.Err)
}

// Unwrap returns the cause: errors.Is finds fs.ErrNotExist when there is no
// such binary, and fs.ErrPermission when it may not be executed.
func (e *LaunchError) Unwrap() error { return e.Err }

// A CommandLauncher executes instances as processes of the operating system,
// with the command line of PROTOCOL section 1:
//
//	binary service_name instance_id network_address socket_configuration plug_configuration
//
// There is no shell. An instance reads nothing from its standard input, and
// finds its agent in the environment variable SSMMP_AGENT, the secret that it
// shares with the agent in SSMMP_SECRET, and its own id in SSMMP_INSTANCE.
//
// An instance is a tree of processes. When the first of them ends, or Kill is
// called, the others are killed. On Linux those are the process group, all
// descendants, and all processes that still have the instance's id and secret
// in their environment, wherever they have gone; only a process that left the
// group, lost its parent and cleared its environment escapes, and with Cgroup
// not even that. On other Unix systems they are the process group. On Windows
// they are the descendants whose ancestors are alive. Elsewhere it is the first
// process only.
//
// Instances outlive a process that launched them and died, and Reattach finds
// them again, on Linux. A program that is the first process of a container needs
// an init beside it to reap orphans.
type CommandLauncher struct {
	// Path is the binary. A name without a separator is looked for in PATH;
	// a relative path is relative to the current directory, not to Dir.
	Path string
	// Args are the arguments before the five of the protocol.
	Args []string
	// Template, where it is not nil, has all arguments, in place of Args and
	// the five, for programs that want others. Placeholders in it stand for
	// what the instance is given: {service}, {instance} for its id, {address}
	// for the node's, {port:S1} for the port of socket S1, and {arguments},
	// an argument by itself, for the five. "{{" and "}}" stand for braces. An
	// argument stays one argument, whatever is put into it.
	Template []string
	// Env are more variables for the instance, "KEY=VALUE". With a Template
	// their values may have the same placeholders but {arguments}.
	Env []string
	// PassEnv names the variables of this process that the instance inherits;
	// it inherits no others. Nil means PATH, HOME, USER, LANG, LC_ALL, TZ,
	// TMPDIR, SSL_CERT_FILE and SSL_CERT_DIR, and on Windows also SYSTEMROOT,
	// SYSTEMDRIVE, WINDIR, COMSPEC, PATHEXT, TEMP, TMP, USERPROFILE, APPDATA,
	// LOCALAPPDATA and PROGRAMDATA.
	PassEnv []string
	// Dir is the instance's working directory. Empty means that of this
	// process.
	Dir string
	// OutputDir is the directory, created when missing, where the standard
	// output and error of each instance are appended to a file of its own,
	// <service>-<id>.log. Empty discards them.
	OutputDir string
	// Cgroup is a directory of the cgroup v2 hierarchy, of Linux, in which this
	// process may make others: each instance then runs in one of its own below
	// it, which no process of it can leave by forking, and nothing of it
	// survives. Empty means that instances stay in the cgroup of this process.
	Cgroup string
}

// Launch starts an instance. Its error is a *LaunchError.
func (c CommandLauncher) Launch(ctx context.Context, l Launch) (Process, error) {
	p, err := c.launch(ctx, l)
	if err != nil {
		return nil, &LaunchError{Service: l.Service, ID: l.ID, Err: err}
	}
	return p, nil
}

func (c CommandLauncher) launch(ctx context.Context, l Launch) (*execProcess, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	args, err := c.arguments(l)
	if err != nil {
		return nil, err
	}
	env, err := c.environment(l)
	if err != nil {
		return nil, err
	}
	path, err := findBinary(c.Path)
	if err != nil {
		return nil, err
	}
	if c.Dir != "" {
		if _, err := os.Stat(c.Dir); err != nil {
			return nil, err // exec's own error would name the binary
		}
	}
	cmd := &exec.Cmd{
		Path:        path,
		Args:        append([]string{path}, args...),
		Env:         env,
		Dir:         c.Dir,
		SysProcAttr: ownGroup(),
	}
	if c.OutputDir != "" {
		// The instance holds the file itself: a pipe would kill it, at its
		// next write, once this process has died.
		out, err := openOutput(c.OutputDir, l)
		if err != nil {
			return nil, err
		}
		defer out.Close()
		cmd.Stdout, cmd.Stderr = out, out
	}
	cgroup := ""
	if c.Cgroup != "" {
		cgroup = cgroupOf(c.Cgroup, l)
		dir, err := makeCgroup(cgroup, cmd.SysProcAttr)
		if err != nil {
			return nil, err
		}
		defer dir.Close()
	}
	if err := cmd.Start(); err != nil {
		if cgroup != "" {
			removeCgroup(cgroup)
		}
		return nil, err
	}
	p := &execProcess{
		cmd:  cmd,
		tree: newTree(cmd.Process, l, cgroup),
		done: make(chan struct{}),
	}
	go p.reap()
	return p, nil
}

// environment returns all that the instance finds in its environment. What
// comes later wins, so that Env cannot replace the agent's own variables.
func (c CommandLauncher) environment(l Launch) ([]string, error) {
	names := c.PassEnv
	if names == nil {
		names = defaultPassEnv
		if runtime.GOOS == "windows" {
			names = append(names[:len(names):len(names)], defaultPassEnvWindows...)
		}
	}
	var env []string
	for _, name := range names {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	for _, kv := range c.Env {
		key, value, ok := strings.Cut(kv, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("environment entry %q is not KEY=VALUE", kv)
		}
		if c.Template != nil {
			var err error
			if value, err = expand(value, l.placeholder); err != nil {
				return nil, fmt.Errorf("environment variable %s: %w", key, err)
			}
		}
		env = append(env, key+"="+value)
	}
	return append(env,
		envAgent+"="+l.Agent,
		envSecret+"="+l.Secret,
		instanceMark(l.ID),
	), nil
}

// An execProcess is an instance that is a tree of processes.
type execProcess struct {
	cmd  *exec.Cmd
	tree *tree
	done chan struct{} // closed when exit is final
	exit Exit

	// mu keeps the first process from being reaped while the tree is killed:
	// until then nothing else can get its process id or its group's.
	mu     sync.Mutex
	reaped bool
}

func (p *execProcess) PID() int { return p.cmd.Process.Pid }

func (p *execProcess) Identity() ProcessIdentity { return p.tree.identity() }

func (p *execProcess) Wait() Exit {
	<-p.done
	return p.exit
}

// Kill sends the signal to all that it finds and leaves it to reap, and so to
// Wait, to see that nothing is left.
func (p *execProcess) Kill() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return nil
	}
	_, err := p.tree.kill()
	return err
}

func (p *execProcess) Signal(name string) error {
	s, ok := signalNamed(name)
	if !ok {
		return noSignal(name)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return nil
	}
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

func noSignal(name string) error { return fmt.Errorf("there is no signal %q here", name) }

func (p *execProcess) Owns(c net.Conn) (owns, known bool) {
	owns, known = p.tree.owns(c)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		// The process ids that were looked at may be someone else's by now,
		// and an instance that has ended holds nothing.
		owns = false
	}
	return owns, known
}

// reap waits for the first process, ends what it left behind, and only then,
// where the system allows that order, reaps it. It is the only one that does.
func (p *execProcess) reap() {
	defer close(p.done)
	unreaped := p.tree.awaitEnd()
	if !unreaped {
		p.exit = p.wait()
	}
	err := p.tree.sweep()

	p.mu.Lock()
	if unreaped {
		p.exit = p.wait()
	}
	p.reaped = true
	p.mu.Unlock()
	p.tree.release()

	if err != nil {
		p.exit.Reason = err.Error()
	}
}

// wait reaps the first process and says how it ended.
func (p *execProcess) wait() Exit {
	err := p.cmd.Wait()
	if p.cmd.ProcessState == nil {
		return Exit{Code: -1, Reason: err.Error()}
	}
	return p.tree.exit(p.cmd.ProcessState)
}

// sweep kills until nothing of the tree is left but its first process, which
// has ended.
func (t *tree) sweep() error {
	deadline := time.Now().Add(sweepTime)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		left, err := t.kill()
		switch {
		case left == 0:
			return nil
		case time.Now().Before(deadline):
			time.Sleep(pause)
		case err != nil:
			return fmt.Errorf("may have left processes running: %w", err)
		default:
			return fmt.Errorf("left %d processes running", left)
		}
	}
}

// findBinary returns the absolute path of a binary that may be executed.
func findBinary(path string) (string, error) {
	found, err := exec.LookPath(path)
	if errors.Is(err, exec.ErrNotFound) && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w: %w", err, fs.ErrNotExist)
	}
	if err != nil {
		return "", err
	}
	return filepath.Abs(found)
}

// openOutput opens the file for an instance's output. The name has been
// checked; os.Root also stops a symbolic link that leads out of dir.
func openOutput(dir string, l Launch) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	name := fmt.Sprintf("%s-%d.log", l.Service, l.ID)
	return root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
}

// cgroupOf is the directory of the cgroup of an instance below dir. The secret
// tells it from another Manager's with the same id.
func cgroupOf(dir string, l Launch) string {
	sum := sha256.Sum256([]byte(l.Secret))
	return filepath.Join(dir, fmt.Sprintf("%s-%d-%x", l.Service, l.ID, sum[:4]))
}

// instanceMark is the environment entry with an instance's id.
func instanceMark(id InstanceID) string {
	return envInstance + "=" + strconv.FormatInt(int64(id), 10)
}

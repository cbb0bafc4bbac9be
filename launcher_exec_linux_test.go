package ssmmp

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// checkEnded fails if the process runs; a zombie is someone else's to reap.
func checkEnded(t *testing.T, p *puppet) {
	t.Helper()
	if s, err := readStat(p.PID); err == nil && s.alive() {
		t.Errorf("process %d still runs: %+v", p.PID, s)
	}
	p.checkGone(t)
}

func TestCommandKillsWhatLeftTheGroup(t *testing.T) {
	t.Parallel()
	for _, kinds := range [][]string{
		{"session"}, {"bare"}, {"daemon"}, {"bare", "group"}, {"group", "daemon"},
		{"session", "daemon", "session"}, {"daemon", "bare"},
	} {
		t.Run(strings.Join(kinds, " "), func(t *testing.T) {
			t.Parallel()
			s := newStage(t, loopback)
			p := start(t, s.launcher(t), testLaunch("a", 1))
			all := []*puppet{s.accept(t)}
			for i, kind := range kinds {
				all = append(all, all[i].spawn(t, s, kind))
			}
			if err := p.Kill(); err != nil {
				t.Fatal(err)
			}
			if got := p.Wait(); got != (Exit{Code: -1, Signal: "SIGKILL"}) {
				t.Errorf("exit %+v", got)
			}
			for _, c := range all {
				checkEnded(t, c)
			}
		})
	}
}

func TestCommandLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"group", "session", "daemon"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, loopback)
			p := start(t, s.launcher(t), testLaunch("a", 1))
			first := s.accept(t)
			left := first.spawn(t, s, kind)
			bare := left.spawn(t, s, "bare")
			first.exit(7)
			if got := p.Wait(); got != (Exit{Code: 7}) {
				t.Errorf("exit %+v, want code 7", got)
			}
			for _, c := range []*puppet{first, left, bare} {
				checkEnded(t, c)
			}
		})
	}
}

// An instance's id is its own only together with its secret.
func TestCommandSparesOthers(t *testing.T) {
	t.Parallel()
	s := newStage(t, loopback)
	l := testLaunch("a", 1)
	p := start(t, s.launcher(t), l)
	mine := s.accept(t)
	others := []Launch{testLaunch("a", 1), testLaunch("a", 2), testLaunch("a", 1), testLaunch("a", 1)}
	others[1].Secret = l.Secret
	others[2].Secret += l.Secret
	others[3].Secret = ""
	var spared []*puppet
	for _, o := range others {
		start(t, s.launcher(t), o)
		c := s.accept(t)
		spared = append(spared, c, c.spawn(t, s, "daemon"))
	}
	mine.spawn(t, s, "daemon")
	p.Kill()
	p.Wait()
	checkEnded(t, mine)
	for _, c := range spared {
		c.tell(t, "print alive")
	}
}

// Without a secret there is no mark, so that no namesake dies.
func TestCommandWithoutSecret(t *testing.T) {
	t.Parallel()
	s := newStage(t, loopback)
	l := testLaunch("a", 1)
	l.Secret = ""
	p := start(t, s.launcher(t), l)
	mine := s.accept(t)
	start(t, s.launcher(t), l)
	namesake := s.accept(t)
	p.Kill()
	p.Wait()
	checkEnded(t, mine)
	namesake.tell(t, "print alive")
}

// instances is how many instances TestCommandLeavesNoZombies executes.
var instances = flag.Int("instances", 100, "how many instances TestCommandLeavesNoZombies executes")

func TestCommandLeavesNoZombies(t *testing.T) {
	t.Parallel()
	c := CommandLauncher{Path: "true"}
	for id := range InstanceID(*instances) {
		p, err := c.Launch(context.Background(), testLaunch("a", id+1))
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Wait(); got != (Exit{}) {
			t.Fatalf("instance %d: %+v", id, got)
		}
		if s, err := readStat(p.PID()); err == nil && s.ppid == os.Getpid() {
			t.Errorf("process %d is still there: %+v", p.PID(), s)
		}
	}
}

func TestCommandOwns(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{loopback, "[::1]:0"} {
		t.Run(addr, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, addr)
			p := start(t, s.launcher(t), testLaunch("a", 1))
			first := s.accept(t)
			child := first.spawn(t, s, "group")
			daemon := first.spawn(t, s, "daemon")
			other := start(t, s.launcher(t), testLaunch("a", 1))
			stranger := s.accept(t)
			dialled, err := net.Dial("tcp", s.ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer dialled.Close()
			accepted, err := s.ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer accepted.Close()

			for _, test := range []struct {
				name        string
				process     Process
				conn        net.Conn
				owns, known bool
			}{
				{"its own", p, first.Conn, true, true},
				{"its child's", p, child.Conn, true, true},
				{"its daemon's", p, daemon.Conn, true, true},
				{"another instance's", p, stranger.Conn, false, true},
				{"the other's own", other, stranger.Conn, true, true},
				{"the other's of the first", other, first.Conn, false, true},
				{"this process's", p, accepted, false, true},
			} {
				if owns, known := test.process.Owns(test.conn); owns != test.owns || known != test.known {
					t.Errorf("%s: owns %t, known %t", test.name, owns, known)
				}
			}

			first.exit(0)
			p.Wait()
			if owns, _ := p.Owns(first); owns {
				t.Error("owns a connection after its end")
			}
			if owns, known := p.Owns(accepted); owns || !known {
				t.Errorf("this process's, after its end: owns %t, known %t", owns, known)
			}
		})
	}
}

func TestCommandOwnsCannotTell(t *testing.T) {
	t.Parallel()
	s := newStage(t, loopback)
	p := start(t, s.launcher(t), testLaunch("a", 1))
	c := s.accept(t)
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	nowhere := &net.TCPAddr{IP: net.IPv4(127, 1, 2, 3), Port: 1}
	for name, conn := range map[string]net.Conn{
		"not TCP":           near,
		"other host's":      fakeConn{c, c.LocalAddr(), nowhere},
		"other transport's": fakeConn{c, nowhere, c.RemoteAddr()},
		"no address":        fakeConn{c, nil, nil},
		"nil address":       fakeConn{c, (*net.TCPAddr)(nil), nowhere},
	} {
		if owns, known := p.Owns(conn); owns || known {
			t.Errorf("%s: owns %t, known %t", name, owns, known)
		}
	}
}

// A fakeConn says of itself that it has other addresses.
type fakeConn struct {
	net.Conn
	local, remote net.Addr
}

func (c fakeConn) LocalAddr() net.Addr  { return c.local }
func (c fakeConn) RemoteAddr() net.Addr { return c.remote }

// A pid that was used again stands for another process.
func TestKillProcessSparesReplaced(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	was, err := readStat(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	was.start--
	if err := killProcess(was); err != nil {
		t.Error(err)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("killed the process that has the pid now: %v", err)
	}
	if err := killProcess(was); err != nil {
		t.Errorf("killing one that has ended: %v", err)
	}
}

func TestParseStat(t *testing.T) {
	t.Parallel()
	tail := strings.Repeat("1 ", 16) // fields 6 to 21
	for _, test := range []struct {
		name, text string
		want       procStat
		ok         bool
	}{
		{"plain", "7 (cat) S 3 5 " + tail + "99 0", procStat{7, 3, 5, 'S', 99}, true},
		{"a name like fields", "7 (x) Z 1 1) R 3 5 " + tail + "99", procStat{7, 3, 5, 'R', 99}, true},
		{"short", "7 (cat) S 3 5 99", procStat{}, false},
		{"empty", "", procStat{}, false},
		{"no end", "7 (cat", procStat{}, false},
		{"words", "7 (cat) S x y " + tail + "z", procStat{}, false},
	} {
		got, err := parseStat(7, []byte(test.text))
		if (err == nil) != test.ok || test.ok && got != test.want {
			t.Errorf("%s: %+v, %v", test.name, got, err)
		}
	}
}

func TestFindSocket(t *testing.T) {
	t.Parallel()
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the table below is that of a little-endian host")
	}
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:D904 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1
   1: 0100007F:9C40 0100007F:D904 01 00000000:00000000 00:00000000 00000000     0        0 12 1
   2: 0100007F:D904 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 13 1
   3: 0000000000000000FFFF00000200007F:9C41 0000000000000000FFFF00000100007F:D904 01 00000000:00000000 00:00000000 00000000     0        0 14 1
   4: 00000000000000000000000001000000:9C40 00000000000000000000000001000000:D904 01 00000000:00000000 00:00000000 00000000     0        0 15 1
   5: 0100007F:9C42 0100007F:D904 06 00000000:00000000 03:00000000 00000000     0        0 0 3
   6: 0100007F:9C43 0100007F:D9
   7: 010007F:9C43 0100007F:D904 01 0 0 0 0 0 0 16
   8: 0100007F:1D904 0100007F:D904 01 0 0 0 0 0 0 17
   9: 00:1 0100007F:D904 01 0 0 0 0 0 0 18
`
	for _, test := range []struct{ local, remote, want string }{
		{"127.0.0.1:40000", "127.0.0.1:55556", "12"},
		{"127.0.0.1:55556", "127.0.0.1:40000", "13"},
		{"127.0.0.2:40001", "127.0.0.1:55556", "14"}, // IPv4 in IPv6
		{"[::1]:40000", "[::1]:55556", "15"},
		{"127.0.0.1:40002", "127.0.0.1:55556", ""}, // closed
		{"127.0.0.1:40003", "127.0.0.1:55556", ""}, // torn line
		{"127.0.0.1:55555", "127.0.0.1:55556", ""},
	} {
		got := findSocket(bufio.NewScanner(strings.NewReader(table)),
			netip.MustParseAddrPort(test.local), netip.MustParseAddrPort(test.remote))
		if got != test.want {
			t.Errorf("%s to %s: %q, want %q", test.local, test.remote, got, test.want)
		}
	}
}

// The first process is not reaped, and its id not free, while others are.
func TestCommandAwaitsWithoutReaping(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tr := newTree(cmd.Process, testLaunch("a", 1), "")
	if !tr.awaitEnd() {
		t.Error("cannot wait without reaping")
	}
	if s, err := readStat(tr.pid); err != nil || s.state != 'Z' {
		t.Errorf("%+v, %v, want a zombie", s, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if tr.awaitEnd() {
		t.Error("waited for a process that was reaped")
	}
}

func BenchmarkOwns(b *testing.B) {
	s := newStage(b, loopback)
	p := start(b, s.launcher(b), testLaunch("a", 1))
	c := s.accept(b)
	for b.Loop() {
		if owns, known := p.Owns(c); !owns || !known {
			b.Fatal(errors.New("cannot tell"))
		}
	}
}

func BenchmarkKill(b *testing.B) {
	s := newStage(b, loopback)
	p, err := s.launcher(b).Launch(context.Background(), testLaunch("a", 1))
	if err != nil {
		b.Fatal(err)
	}
	s.accept(b)
	t := p.(*execProcess).tree
	for b.Loop() {
		t.members() // all of a kill but the signals
	}
	p.Kill()
	p.Wait()
}

package ssmmp

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
)

// owns finds the socket at the far end of c, and looks for it among the open
// files of the tree's processes.
func (t *tree) owns(c net.Conn) (owns, known bool) {
	near, far, ok := tcpEnds(c)
	if !ok {
		return false, false
	}
	inode := socketInode(far, near)
	if inode == "" {
		return false, false
	}
	link := "socket:[" + inode + "]"
	// A second look, for a socket that was on its way from a process to its
	// child during the first.
	for range 2 {
		members, err := t.members()
		known = err == nil
		for _, m := range members {
			holds, err := holdsFile(m, link)
			if holds {
				return true, true
			}
			if errors.Is(err, fs.ErrPermission) {
				known = false
			}
		}
	}
	return false, known
}

// tcpEnds returns both addresses of a TCP connection, without IPv4 in IPv6.
func tcpEnds(c net.Conn) (near, far netip.AddrPort, ok bool) {
	local, ok1 := c.LocalAddr().(*net.TCPAddr)
	remote, ok2 := c.RemoteAddr().(*net.TCPAddr)
	if !ok1 || !ok2 || local == nil || remote == nil {
		return near, far, false
	}
	return plainAddr(local.AddrPort()), plainAddr(remote.AddrPort()), true
}

// plainAddr returns a in the one form in which the kernel's tables are read.
func plainAddr(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

// socketInode returns the inode of the socket of this host with those two
// addresses, or the empty string. An IPv4 connection may be an IPv6 socket's.
func socketInode(local, remote netip.AddrPort) string {
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(table)
		if err != nil {
			continue
		}
		inode := findSocket(bufio.NewScanner(f), local, remote)
		f.Close()
		if inode != "" {
			return inode
		}
	}
	return ""
}

// findSocket reads lines of the kernel's table of TCP sockets: number, local
// address, remote address, and in the tenth field the inode, which is 0 once
// no process has the socket open.
func findSocket(lines *bufio.Scanner, local, remote netip.AddrPort) string {
	for lines.Scan() {
		f := bytes.Fields(lines.Bytes())
		if len(f) < 10 {
			continue
		}
		if a, ok := parseKernelAddr(f[1]); !ok || a != local {
			continue
		}
		if a, ok := parseKernelAddr(f[2]); !ok || a != remote {
			continue
		}
		if inode := string(f[9]); inode != "0" {
			return inode
		}
	}
	return ""
}

// parseKernelAddr reads "0100007F:D6D8": the address as 32-bit words that the
// kernel printed as numbers in the host's byte order, and the port as a number.
func parseKernelAddr(b []byte) (a netip.AddrPort, ok bool) {
	host, port, ok := bytes.Cut(b, []byte{':'})
	if !ok {
		return a, false
	}
	raw := make([]byte, hex.DecodedLen(len(host)))
	if _, err := hex.Decode(raw, host); err != nil || len(raw)%4 != 0 {
		return a, false
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	addr, ok := netip.AddrFromSlice(raw)
	if !ok {
		return a, false
	}
	n, err := strconv.ParseUint(string(port), 16, 16)
	if err != nil {
		return a, false
	}
	return plainAddr(netip.AddrPortFrom(addr, uint16(n))), true
}

// holdsFile reports whether the process has a file open with that link text.
func holdsFile(s procStat, link string) (bool, error) {
	name := "/proc/" + strconv.Itoa(s.pid) + "/fd"
	dir, err := os.Open(name)
	if err != nil {
		return false, err
	}
	defer dir.Close()
	fds, err := dir.Readdirnames(-1)
	for _, fd := range fds {
		if to, err := os.Readlink(name + "/" + fd); err == nil && to == link {
			return !s.replaced(), nil
		}
	}
	return false, err
}

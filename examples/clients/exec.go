package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"github.com/ssmmp/ssmmp"
)

// command executes an unmodified program, which wants to hear of its port in
// its own way: this program puts it in and becomes that program.
func command(args ...string) ssmmp.Launcher {
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	return ssmmp.CommandLauncher{Path: self, Args: append([]string{"exec"}, args...)}
}

// execInPlace replaces this process by the program that args name, with address
// and ports in place of {address} and {port:SOCKET}. The agent's five
// arguments come last.
func execInPlace(args []string) error {
	l, err := ssmmp.ParseLaunch(args, os.LookupEnv)
	if err != nil {
		return err
	}
	if args = args[:len(args)-5]; len(args) == 0 {
		return errors.New("exec: no program")
	}
	values := []string{"{address}", l.Address.String()}
	for _, s := range l.Sockets {
		values = append(values, "{port:"+s.Socket+"}", strconv.Itoa(int(s.Port)))
	}
	put := strings.NewReplacer(values...)
	for i := range args {
		args[i] = put.Replace(args[i])
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	return fmt.Errorf("exec %s: %w", path, syscall.Exec(path, args, os.Environ()))
}

// tempDir is where the servers keep their data.
func tempDir() string { return os.TempDir() }

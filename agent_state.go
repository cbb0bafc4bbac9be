package ssmmp

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"
)

// What an agent knows after it died: its state in a directory. One file says
// who the agent is, one for each instance what is known of it, and one lists
// the ids that have ended. The first two kinds are JSON, and a line with their
// checksum; they are replaced as a whole.

const (
	stateSelf     = "agent"
	stateInstance = "instance-" // and the id
	stateEnded    = "ended"     // an id in each line, oldest first
	stateLock     = "lock"
	stateNew      = ".new"     // what is being written has this ending
	stateDamaged  = ".damaged" // what cannot be read is set aside with this ending

	// lockPatience is how long a start waits for the lock: a process that an
	// agent was forking when it died holds it until it executes its program.
	lockPatience = 5 * time.Second
)

// An InstanceRecord is what an agent keeps of an instance, to know it again
// after it died itself.
type InstanceRecord struct {
	Launch    Launch          `json:"launch"`
	Execution int64           `json:"execution"`       // message id of the execution_request
	Process   ProcessIdentity `json:"process"`         // the zero value until it was started
	Ready     bool            `json:"ready"`           // that request was answered with success
	Spoke     bool            `json:"spoke"`           // it said hello: it speaks SSMMP
	Ended     *Exit           `json:"ended,omitempty"` // how it ended, which the Manager may not know
}

// An agentIdentity is what an agent keeps of itself.
type agentIdentity struct {
	Identity string `json:"identity"` // by which the Manager knows it from others
	Listen   string `json:"listen"`   // where its instances find it
	Epoch    uint64 `json:"epoch"`    // the greatest that a Manager told
}

// An agentState is the directory of one agent, which holds its lock.
type agentState struct {
	dir  string
	log  hclog.Logger
	lock *os.File

	mu      sync.Mutex // guards what follows, and the files
	self    agentIdentity
	records map[InstanceID]*InstanceRecord
	ended   []InstanceID // oldest first
	damaged []InstanceID // their records could not be read
	closed  bool
}

// errLocked says that a file is locked: by an agent that lives.
var errLocked = errors.New("another agent uses the directory")

// openAgentState takes a directory and reads what is in it.
func openAgentState(ctx context.Context, dir string, log hclog.Logger) (*agentState, error) {
	s := &agentState{dir: dir, log: log, records: map[InstanceID]*InstanceRecord{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	var err error
	s.lock, err = lockFile(filepath.Join(dir, stateLock))
	for until := time.Now().Add(lockPatience); errors.Is(err, errLocked) && time.Now().Before(until) && sleep(ctx, 20*time.Millisecond); {
		s.lock, err = lockFile(filepath.Join(dir, stateLock))
	}
	if err != nil {
		return nil, err
	}
	if err := s.load(); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// close gives the directory back. What is changed afterwards is not written.
func (s *agentState) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		unlockFile(s.lock)
	}
}

func (s *agentState) load() error {
	switch err := s.read(stateSelf, &s.self); {
	case err == nil || errors.Is(err, fs.ErrNotExist):
	case unread(err):
		return err
	default:
		s.setAside(stateSelf, err)
		s.self = agentIdentity{}
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		number, is := strings.CutPrefix(e.Name(), stateInstance)
		if !is {
			continue
		}
		if strings.HasSuffix(number, stateNew) {
			os.Remove(filepath.Join(s.dir, e.Name()))
			continue
		}
		id, err := strconv.ParseInt(number, 10, 64)
		if err != nil || id <= 0 {
			continue // set aside before
		}
		r := new(InstanceRecord)
		err = s.read(e.Name(), r)
		if unread(err) {
			return err
		}
		if err == nil {
			err = r.check(InstanceID(id))
		}
		if err != nil {
			s.setAside(e.Name(), err)
			s.damaged = append(s.damaged, InstanceID(id))
			continue
		}
		s.records[r.Launch.ID] = r
	}
	return s.loadEnded()
}

func (s *agentState) loadEnded() error {
	b, err := s.readFile(stateEnded)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for line := range strings.Lines(string(b)) {
		// A line that a power cut left half written is no number, or has no end.
		id, err := strconv.ParseInt(strings.TrimSuffix(line, "\n"), 10, 64)
		if err == nil && id > 0 && strings.HasSuffix(line, "\n") {
			s.ended = append(s.ended, InstanceID(id))
		}
	}
	if len(s.ended) <= endedKept && len(s.damaged) == 0 {
		return nil
	}
	s.ended = append(s.ended, s.damaged...)
	return s.writeEnded()
}

// writeEnded writes the list of the ended anew, as long as it need be.
func (s *agentState) writeEnded() error {
	s.ended = slices.Clone(s.ended[max(0, len(s.ended)-endedKept):])
	var list []byte
	for _, id := range s.ended {
		list = append(strconv.AppendInt(list, int64(id), 10), '\n')
	}
	return s.replace(stateEnded, list)
}

// noteEnded adds to the list of the ended, which never gets twice as long as it
// need be.
func (s *agentState) noteEnded(id InstanceID) error {
	if s.ended = append(s.ended, id); len(s.ended) >= 2*endedKept {
		return s.writeEnded()
	}
	return appendLine(filepath.Join(s.dir, stateEnded), strconv.FormatInt(int64(id), 10))
}

// check reports what is wrong with a record that was read.
func (r *InstanceRecord) check(id InstanceID) error {
	if r.Launch.ID != id {
		return fmt.Errorf("it is of instance %d", r.Launch.ID)
	}
	_, err := commandArgs(r.Launch)
	return err
}

// setAside gives a file that cannot be read another name, for a person to see.
func (s *agentState) setAside(name string, cause error) {
	path := filepath.Join(s.dir, name)
	s.log.Error("the state is damaged: set aside", "file", path, "as", path+stateDamaged, "error", cause)
	if err := os.Rename(path, path+stateDamaged); err != nil {
		s.log.Error("cannot set aside", "file", path, "error", err)
	}
}

// unread tells whether a file could not be read. Nobody knows what is in it then:
// it is not damaged.
func unread(err error) bool {
	var p *fs.PathError
	return errors.As(err, &p)
}

// list returns the records in the order of their ids.
func (s *agentState) list() []InstanceRecord {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []InstanceRecord
	for _, r := range s.records {
		all = append(all, *r)
	}
	slices.SortFunc(all, func(a, b InstanceRecord) int { return cmp.Compare(a.Launch.ID, b.Launch.ID) })
	return all
}

// begin makes sure that the agent has an identity, and notes where it listens.
func (s *agentState) begin(listen string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	self := s.self
	self.Listen = listen
	if self.Identity == "" {
		self.Identity = uuid.NewString()
	}
	if self == s.self {
		return nil
	}
	s.self = self
	return s.write(stateSelf, self)
}

// obeys notes the epoch of the Manager: one before it is not obeyed, also by
// the agent after this one.
func (s *agentState) obeys(epoch uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || epoch <= s.self.Epoch {
		return
	}
	s.self.Epoch = epoch
	if err := s.write(stateSelf, s.self); err != nil {
		s.log.Error("cannot keep the Manager's epoch", "epoch", epoch, "error", err)
	}
}

// intend notes an instance before it is executed. Nothing is executed that
// could not be noted.
func (s *agentState) intend(r InstanceRecord) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.write(recordName(r.Launch.ID), r); err != nil {
		return err
	}
	s.records[r.Launch.ID] = &r
	return nil
}

// update changes what is noted of an instance, and does nothing if that is
// forgotten.
func (s *agentState) update(id InstanceID, change func(*InstanceRecord)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.records[id]
	if r == nil || s.closed {
		return
	}
	change(r)
	if err := s.write(recordName(id), r); err != nil {
		s.log.Error("cannot keep what is known of an instance", "instance", id, "error", err)
	}
}

// forget removes what is noted of an instance. That it has ended is remembered
// if it ever may have run. A list that a power cut shortens does no harm: the
// Manager knows.
func (s *agentState) forget(id InstanceID, ran bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.records[id] == nil || s.closed {
		return
	}
	delete(s.records, id)
	var err error
	if ran {
		err = s.noteEnded(id)
	}
	if err == nil {
		err = os.Remove(filepath.Join(s.dir, recordName(id)))
	}
	if err != nil {
		s.log.Error("cannot forget an instance", "instance", id, "error", err)
	}
}

func recordName(id InstanceID) string { return stateInstance + strconv.FormatInt(int64(id), 10) }

func appendLine(path, line string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line + "\n")
	return errors.Join(err, f.Close())
}

// write replaces a file by the JSON of v and its checksum.
func (s *agentState) write(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	b = append(b, '\n')
	return s.replace(name, fmt.Appendf(b, "crc32c %08x\n", checksum(b)))
}

// replace puts contents in the place of a file, so that after a power cut
// either the old ones are there or the new.
func (s *agentState) replace(name string, contents []byte) error {
	path := filepath.Join(s.dir, name)
	temp := path + stateNew
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(contents)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		os.Remove(temp)
		return err
	}
	return syncDir(s.dir)
}

// maxStateFile is more than any file of an agent's state has, in bytes.
const maxStateFile = 64 << 20

// readFile reads a file, and nothing that might be without an end.
func (s *agentState) readFile(name string) ([]byte, error) {
	path := filepath.Join(s.dir, name)
	switch info, err := os.Lstat(path); {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular() || info.Size() > maxStateFile:
		return nil, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("no file of an agent: %v, %d bytes", info.Mode(), info.Size())}
	}
	return os.ReadFile(path)
}

// read reads what write wrote.
func (s *agentState) read(name string, v any) error {
	b, err := s.readFile(name)
	if err != nil {
		return err
	}
	end := bytes.IndexByte(b, '\n') + 1
	if want := fmt.Sprintf("crc32c %08x\n", checksum(b[:end])); end == 0 || string(b[end:]) != want {
		return errors.New("its checksum is wrong")
	}
	return json.Unmarshal(b[:end], v)
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

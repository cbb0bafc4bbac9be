package ssmmp

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// allArguments is the placeholder that stands, as an argument by itself, for
// the protocol's five arguments.
const allArguments = "{arguments}"

// arguments returns the command line of an instance after the binary.
func (c CommandLauncher) arguments(l Launch) ([]string, error) {
	five, err := commandArgs(l)
	if err != nil {
		return nil, err
	}
	if c.Template == nil {
		return append(append([]string(nil), c.Args...), five...), nil
	}
	var args []string
	for _, word := range c.Template {
		if word == allArguments {
			args = append(args, five...)
			continue
		}
		arg, err := expand(word, l.placeholder)
		if err != nil {
			return nil, fmt.Errorf("argument %q: %w", word, err)
		}
		args = append(args, arg)
	}
	return args, nil
}

// placeholder returns what a placeholder stands for. All of it is numbers,
// addresses and names, which neither begin with a hyphen nor hold a brace.
func (l *Launch) placeholder(name string) (string, error) {
	switch name {
	case "service":
		return l.Service, nil
	case "instance":
		return strconv.FormatInt(int64(l.ID), 10), nil
	case "address":
		return l.Address.String(), nil
	}
	socket, ok := strings.CutPrefix(name, "port:")
	if !ok {
		return "", notPlaceholder(name)
	}
	for _, s := range l.Sockets {
		if s.Socket == socket {
			return strconv.Itoa(int(s.Port)), nil
		}
	}
	return "", fmt.Errorf("the instance has no socket %.150q", socket)
}

func notPlaceholder(name string) error {
	if "{"+name+"}" == allArguments {
		return errors.New(allArguments + " is not an argument by itself")
	}
	return fmt.Errorf("{%.150s} is not {service}, {instance}, {address} or {port:SOCKET}", name)
}

// expand replaces the placeholders in a text, each once: what it puts in is not
// looked at again.
func expand(text string, value func(name string) (string, error)) (string, error) {
	var b strings.Builder
	for {
		i := strings.IndexAny(text, "{}")
		if i < 0 {
			b.WriteString(text)
			return b.String(), nil
		}
		b.WriteString(text[:i])
		brace := text[i]
		text = text[i+1:]
		if text != "" && text[0] == brace {
			b.WriteByte(brace)
			text = text[1:]
			continue
		}
		name, rest, ok := strings.Cut(text, "}")
		if brace == '}' || !ok {
			return "", fmt.Errorf("a single '%c' is no placeholder; '%[1]c%[1]c' stands for one", brace)
		}
		v, err := value(name)
		if err != nil {
			return "", err
		}
		b.WriteString(v)
		text = rest
	}
}

// commandArgs returns the protocol's five arguments. A name becomes an argument
// and a part of a file's name, so it must be neither a flag nor a path.
func commandArgs(l Launch) ([]string, error) {
	fields, names := []string{"service name"}, []string{l.Service}
	for _, s := range l.Sockets {
		fields, names = append(fields, "socket"), append(names, s.Socket)
	}
	for _, p := range l.Plugs {
		fields, names = append(fields, "plug", "socket", "service"), append(names, p.Plug, p.Socket, p.Service)
	}
	for i, name := range names {
		if !ValidName(name) {
			return nil, fmt.Errorf("%s %.150q is not a name", fields[i], name)
		}
	}
	if l.ID <= 0 {
		return nil, fmt.Errorf("instance id %d is not positive", l.ID)
	}
	if !l.Address.IsValid() {
		return nil, errors.New("no network address")
	}
	return []string{
		l.Service, strconv.FormatInt(int64(l.ID), 10), l.Address.String(), FormatSockets(l.Sockets), FormatPlugs(l.Plugs),
	}, nil
}

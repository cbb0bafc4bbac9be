package ssmmp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// errUnknownField is what the function that reads an object's fields answers to
// a key that the object does not have.
var errUnknownField = errors.New("unknown field")

// fileFault is the text of a fault in a file of that kind.
func fileFault(kind string, line, column int, field, reason string) string {
	s := "ssmmp: " + kind + " file: "
	if line > 0 {
		s += fmt.Sprintf("%d:%d: ", line, column)
	}
	if field != "" {
		s += field + ": "
	}
	return s + reason
}

// A jsonReader walks the tokens of a file in JSON. Unlike json.Unmarshal it
// refuses a key given twice or in another case, and knows where it is.
type jsonReader struct {
	data  []byte
	dec   *json.Decoder
	at    int    // offset of the last token
	depth int    // how many objects and arrays it is in
	field string // that is being read

	fault    func(line, column int, field, reason string) error
	collects int     // how many faults are kept while reading goes on; 0 to stop at the first
	faults   []error // that were kept
}

func newJSONReader(data []byte, fault func(line, column int, field, reason string) error) *jsonReader {
	r := &jsonReader{data: data, dec: json.NewDecoder(bytes.NewReader(data)), fault: fault}
	r.dec.UseNumber()
	return r
}

// keep keeps a fault and skips what is left of its value, which ends at that
// depth. The error that it returns is one that reading ends with.
func (r *jsonReader) keep(fault error, depth int) error {
	if r.collects == 0 {
		return fault
	}
	if len(r.faults) == r.collects {
		return errors.New("there are more faults than are listed here")
	}
	r.faults = append(r.faults, fault)
	for r.depth > depth {
		if _, err := r.token(); err != nil {
			return err
		}
	}
	return nil
}

// checkSyntax checks that the whole text is one JSON value, so that later the
// tokens can only be wrong in what they mean.
func (r *jsonReader) checkSyntax() error {
	var value json.RawMessage
	err := json.Unmarshal(r.data, &value)
	if err == nil {
		return nil
	}
	r.at = len(r.data)
	if syntax := (*json.SyntaxError)(nil); errors.As(err, &syntax) && !strings.HasPrefix(err.Error(), "unexpected end") {
		r.at = int(syntax.Offset) - 1 // Offset is after the offending byte
	}
	return r.fail("%v", err)
}

// object reads an object; read reads the value of one of its keys.
func (r *jsonReader) object(read func(key string) error) error {
	if err := r.open('{', "an object"); err != nil {
		return err
	}
	outer, depth := r.field, r.depth
	seen := map[string]bool{}
	for r.dec.More() {
		token, err := r.token()
		if err != nil {
			return err
		}
		key, _ := token.(string) // the syntax is checked: a key is a string
		if seen[key] {
			err = r.failAtKey("the field %s is given twice", displayName(key))
		} else {
			seen[key] = true
			r.field = key
			err = read(key)
			r.field = outer
			if err == errUnknownField {
				err = r.failAtKey("unknown field %s", displayName(key))
			}
		}
		if err != nil {
			if err = r.keep(err, depth); err != nil {
				return err
			}
		}
	}
	_, err := r.token() // the closing brace
	return err
}

// array reads an array; read reads one of its items.
func (r *jsonReader) array(read func() error) error {
	if err := r.open('[', "an array"); err != nil {
		return err
	}
	depth := r.depth
	for r.dec.More() {
		if err := read(); err != nil {
			if err = r.keep(err, depth); err != nil {
				return err
			}
		}
	}
	_, err := r.token() // the closing bracket
	return err
}

// texts reads an object all of whose values are strings.
func (r *jsonReader) texts(fields map[string]*string) error {
	return r.object(func(key string) error {
		if s, ok := fields[key]; ok {
			return r.text(s)
		}
		return errUnknownField
	})
}

func (r *jsonReader) boolean(b *bool) error {
	token, err := r.token()
	if err != nil {
		return err
	}
	value, ok := token.(bool)
	if !ok {
		return r.fail("want true or false, found %s", tokenName(token))
	}
	*b = value
	return nil
}

func (r *jsonReader) text(s *string) error {
	token, err := r.token()
	if err != nil {
		return err
	}
	text, ok := token.(string)
	if !ok {
		return r.fail("want a string, found %s", tokenName(token))
	}
	*s = text
	return nil
}

// open reads the delimiter that begins an object or an array.
func (r *jsonReader) open(delim json.Delim, want string) error {
	token, err := r.token()
	if err != nil {
		return err
	}
	if token != delim {
		return r.fail("want %s, found %s", want, tokenName(token))
	}
	return nil
}

// token reads the next token and notes where it begins.
func (r *jsonReader) token() (json.Token, error) {
	r.at = int(r.dec.InputOffset())
	for r.at < len(r.data) && strings.IndexByte(" \t\r\n,:", r.data[r.at]) >= 0 {
		r.at++
	}
	token, err := r.dec.Token()
	if err != nil {
		return nil, r.fail("%v", err)
	}
	switch token {
	case json.Delim('{'), json.Delim('['):
		r.depth++
	case json.Delim('}'), json.Delim(']'):
		r.depth--
	}
	return token, nil
}

// fail returns the fault of the token that was read last.
func (r *jsonReader) fail(format string, args ...any) error {
	return r.failAt(r.at, format, args...)
}

func (r *jsonReader) failAt(at int, format string, args ...any) error {
	before := r.data[:min(max(at, 0), len(r.data))]
	return r.fault(bytes.Count(before, []byte{'\n'})+1, utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:])+1,
		r.field, fmt.Sprintf(format, args...))
}

// failAtKey returns the fault of the key that was read last, and skips its
// value.
func (r *jsonReader) failAtKey(format string, args ...any) error {
	fault := r.fail(format, args...)
	r.token() // its value, or the beginning of that
	return fault
}

func tokenName(token json.Token) string {
	switch t := token.(type) {
	case json.Delim:
		if t == '{' {
			return "an object"
		}
		return "an array"
	case string:
		return "a string"
	case json.Number:
		return "a number"
	case bool:
		return "a boolean"
	default:
		return "null"
	}
}

package ssmmp

import "strings"

// FormatText returns m in the form for people: the lines that AppendMessage
// joins, each on its own (PROTOCOL section 2). Its errors are AppendMessage's.
func FormatText(m Message) (string, error) {
	b, err := AppendMessage(nil, m)
	if err != nil {
		return "", err
	}
	return strings.ReplaceAll(string(b), separator, "\n"), nil
}

// ParseText reads what FormatText writes, with the liberties of ParseMessage.
// The end of the last line may be missing.
func ParseText(text string) (Message, error) {
	text = strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\r\n", "\n")
	text = strings.TrimSuffix(strings.TrimSuffix(text, "\r"), separator)
	number := 0
	for s := range strings.SplitSeq(text, "\n") {
		number++
		// A separator within a line would make two of it.
		if !validText(s) {
			name, value, _ := strings.Cut(s, ": ")
			return nil, &ProtocolError{
				Status: StatusBadMessage,
				Line:   number,
				Field:  clip(name),
				Value:  clip(value),
				Reason: "separator or control character within a line",
			}
		}
	}
	return ParseMessage(strings.ReplaceAll(text, "\n", separator))
}

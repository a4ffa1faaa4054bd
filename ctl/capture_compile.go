package ctl

import "errors"

// compiles tells whether nothing is captured, and a program is printed instead.
func (f *captureFlags) compiles() bool { return f.compile || f.program > 0 }

// printProgram prints the program of a filter.
func (f *captureFlags) printProgram(e *Env, text string) error {
	switch {
	case e.Compile == nil:
		return errors.New("this program cannot compile filters")
	case len(f.sources) > 0 || f.read != "" || f.write != "":
		return &UsageError{Verb: "capture", Why: "-d and --compile capture nothing: no -i, -r or -w", Hint: "sockd-ctl capture -d -y EN10MB FILTER"}
	case f.program > 3:
		return &UsageError{Verb: "capture", Why: "-d, -dd and -ddd are all there are"}
	}
	return e.Compile(e.Stdout, CompileOptions{Filter: text, Link: f.link, Style: max(f.program, 1), Plain: f.plain})
}

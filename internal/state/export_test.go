package state

import "os"

// Decode is the parser, for the fuzz target.
var Decode = decode

// CheckDir is the check of the directory, for any user id.
var CheckDir = checkDir

// SetCreate lets a test decide where a save is written to.
func (d *Dir) SetCreate(f func(name string) (*os.File, error)) { d.create = f }

package state

import "os"

// Decode is the parser, for the fuzz target.
var Decode = decode

// CheckDir is the check of the directory, for any user id.
var CheckDir = checkDir

// Unusable is the message about a directory that cannot be made or used.
var Unusable = unusable

// SetCreate lets a test decide where a save is written to.
func (d *Dir) SetCreate(f func(name string) (*os.File, error)) { d.create = f }

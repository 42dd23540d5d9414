// Witness writes what it can later prove and says what it saw. The end-to-end stories use it wherever a claim about data needs
// a judge that shares no code with the servers under test: inside guests (files on a file system), on a disk that is about to
// lose its power, and as a plain NBD client.
//
//	witness files DIR SECONDS       checksummed files, written and synced in rounds; verified at the end
//	witness nbd write|check ...     4 KiB records through NBD, with a list of what was acknowledged and flushed
//	witness power write|check ...   records on a file, "ACK n" printed once they are (or are claimed to be) durable
//	witness still                   says when the machine stood still: "STILL from to", in seconds since 1970
package main

import (
	"fmt"
	"os"
)

func main() {
	commands := map[string]func([]string) error{"files": filesMain, "nbd": nbdMain, "power": powerMain, "still": stillMain}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: witness files|nbd|power|still ...")
		os.Exit(64)
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "witness %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

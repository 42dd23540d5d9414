package main

import (
	_ "embed"

	"github.com/urfave/cli/v2"
)

// Scripts by which shells ask this program for words (urfave/cli answers).
var (
	//go:embed completion/bash
	bashCompletion string
	//go:embed completion/zsh
	zshCompletion string
)

func (s *shell) completionCommand() *cli.Command {
	return &cli.Command{Name: "completion", Usage: "print what a shell needs to complete words: eval \"$(sheep completion bash)\"", ArgsUsage: "bash|zsh",
		Action: func(c *cli.Context) error {
			if err := arguments(c, "bash|zsh"); err != nil {
				return err
			}
			switch c.Args().First() {
			case "bash":
				s.printf("%s", bashCompletion)
			case "zsh":
				s.printf("%s", zshCompletion)
			default:
				return usagef("sheep completion: unknown shell '%s': use bash or zsh", c.Args().First())
			}
			return nil
		}}
}

func (s *shell) manCommand() *cli.Command {
	return &cli.Command{Name: "man", Usage: "print the manual page: sheep man | man -l -", Action: func(c *cli.Context) error {
		page, err := c.App.ToMan()
		if err != nil {
			return err
		}
		s.printf("%s", page)
		return nil
	}}
}

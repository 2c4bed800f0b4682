package main

import (
	"context"
	"flag"
	"fmt"
	"io"
)

func commandCheck(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("check", flag.ContinueOnError)
	path := configFlag(flags)
	if err := flags.Parse(args); err != nil {
		return err
	}
	_, warnings, err := loadConfig(configPath(*path))
	if err != nil {
		return err
	}
	for _, w := range warnings {
		fmt.Fprintln(out, "warning:", w)
	}
	return nil
}

// Package scenarios has what all programs of this folder have in common: a program is called with an address and the name of a
// scenario.
package scenarios

import (
	"crypto/rand"
	"fmt"
	"log"
	"maps"
	"os"
	"reflect"
	"slices"
	"strconv"
	"time"
)

// The exit code of a scenario that a client cannot do.
const skipped = 77

// Unique returns a name that nothing else has.
func Unique(name string) string {
	return name + "-" + rand.Text()[:8]
}

// Numbers returns the numbers from 0 as text.
func Numbers(count int) []string {
	values := make([]string, count)
	for n := range values {
		values[n] = strconv.Itoa(n)
	}
	return values
}

// InOrder returns the values of records, which have their offsets as keys.
func InOrder(records map[int64]string) []string {
	values := []string{}
	for _, offset := range slices.Sorted(maps.Keys(records)) {
		values = append(values, records[offset])
	}
	return values
}

// Ends the program with a message that names the line of the caller's caller.
func fail(format string, values ...any) {
	log.Output(3, fmt.Sprintf(format, values...))
	os.Exit(1)
}

// Until calls `done` until it is true.
func Until(what string, seconds int, done func() bool) {
	for limit := time.Now().Add(time.Duration(seconds) * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(limit) {
			fail("not within %d s: %s", seconds, what)
		}
	}
}

// Same fails if something else was found than expected.
func Same(found, expected any) {
	if !reflect.DeepEqual(found, expected) {
		fail("found %.300s, expected %.300s", fmt.Sprint(found), fmt.Sprint(expected))
	}
}

// Check fails if there is an error.
func Check(err error) {
	if err != nil {
		fail("%v", err)
	}
}

// Value returns the value of a call that must not fail.
func Value[T any](value T, err error) T {
	if err != nil {
		fail("%v", err)
	}
	return value
}

// Run runs the scenario that the program is called with.
func Run(scenarios map[string]func(address string)) {
	log.SetFlags(log.Lshortfile)
	address, name := os.Args[1], os.Args[2]
	scenario, known := scenarios[name]
	if !known {
		os.Exit(skipped)
	}
	scenario(address)
}

# The commands of the README. Each installs what it needs through apt, and says so first.

.PHONY: demo test

## See it work: a private PostgreSQL, the collector, recorded Kong traffic. Ctrl-C ends it.
demo:
	@tests/demo.sh

## Everything that has to pass before a change lands.
test:
	@tests/check.sh

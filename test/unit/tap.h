/*
 * The Test Anything Protocol in a few lines: every check prints "ok n - what" or "not ok n - what"; prove adds them up.
 */
#ifndef TAP_H
#define TAP_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>

static int	tap_count;
static int	tap_failed;

/* Returns `good`, so that what depends on it can be left out. */
static bool __attribute__((format(printf, 2, 3)))
ok(bool good, const char *format,...)
{
	va_list		args;

	printf("%sok %d - ", good ? "" : "not ", ++tap_count);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	fflush(stdout);
	if (!good)
		tap_failed++;
	return good;
}

/* The plan comes last; the exit status says whether all went well. */
static int
done_testing(void)
{
	printf("1..%d\n", tap_count);
	return tap_failed == 0 ? 0 : 1;
}

#endif							/* TAP_H */

/*
 * A clock that a test can set: loaded into the test's server ahead of libc (LD_PRELOAD).
 *
 *	OUTBOX_CLOCK	a file with the seconds by which the clock is ahead, as text; negative: behind.  Looked at each time
 *
 * Only the time of day is changed; the monotonic clock, by which processes wait, goes on as it is, as when somebody sets the clock of a machine.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

typedef int (*ClockGetTime) (clockid_t, struct timespec *);

static long
seconds_ahead(void)
{
	const char *path = getenv("OUTBOX_CLOCK");
	char		text[32];
	ssize_t		size;
	int			fd = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return 0;
	size = read(fd, text, sizeof(text) - 1);
	close(fd);
	text[size < 0 ? 0 : size] = '\0';
	return atol(text);
}

int
clock_gettime(clockid_t which, struct timespec *now)
{
	static ClockGetTime real;
	int			result;

	if (real == NULL)
		real = (ClockGetTime) dlsym(RTLD_NEXT, "clock_gettime");
	result = real(which, now);
	if (result == 0 && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE))
		now->tv_sec += seconds_ahead();
	return result;
}

int
gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec precise;

	(void) zone;
	if (clock_gettime(CLOCK_REALTIME, &precise) != 0)
		return -1;
	now->tv_sec = precise.tv_sec;
	now->tv_usec = precise.tv_nsec / 1000;
	return 0;
}

time_t
time(time_t *now)
{
	struct timespec precise;

	clock_gettime(CLOCK_REALTIME, &precise);
	if (now != NULL)
		*now = precise.tv_sec;
	return precise.tv_sec;
}

/*
 * What happens at fault points (fault.h). Only in a test build.
 *
 * Must be callable where nothing may be allocated and nothing raised: it uses system calls, and raises only where it is told that it may.
 */
#include "postgres.h"

#include <fcntl.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include "fault.h"
#include "miscadmin.h"

#define DIRECTORY "outbox.fault"
#define MAX_POINTS 128

/* How often this process has passed a point whose file is there. */
typedef struct Passed
{
	const char *name;			/* a literal */
	int			hits;
} Passed;

static Passed passed[MAX_POINTS];

static int *
hits_of(const char *name)
{
	static int	overflow;

	for (int i = 0; i < MAX_POINTS; i++)
	{
		if (passed[i].name == NULL)
			passed[i].name = name;
		if (strcmp(passed[i].name, name) == 0)
			return &passed[i].hits;
	}
	return &overflow;
}

/* The line in this file; false: there is none. */
static bool
read_line(const char *path, char *line, size_t room)
{
	int			fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t		size;

	if (fd < 0)
		return false;
	size = read(fd, line, room - 1);
	close(fd);
	if (size <= 0)
		return false;
	line[size] = '\0';
	line[strcspn(line, "\n")] = '\0';
	return true;
}

static void
stand_still(long ms)
{
	struct timespec left = {ms / 1000, ms % 1000 * 1000000};

	while (nanosleep(&left, &left) != 0 && errno == EINTR)
		;
}

/* As a mistake would: what raise() sends waits while signals are blocked, what the processor says does not. */
static void
crash(void)
{
	volatile int *volatile nowhere = NULL;

	*nowhere = 0;
}

static void
act(const char *name, const char *action)
{
	if (strncmp(action, "sleep:", 6) == 0)
		stand_still(atol(action + 6));
	else if (strncmp(action, "stop", 4) == 0)
		kill(getpid(), SIGSTOP);
	else if (strncmp(action, "term", 4) == 0)
		kill(getpid(), SIGTERM);
	else if (strncmp(action, "kill", 4) == 0)
		kill(getpid(), SIGKILL);
	else if (strncmp(action, "crash", 5) == 0)
		crash();
	else
		ereport(strncmp(action, "fatal", 5) == 0 ? FATAL : ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("fault at point %s", name)));
}

static bool
raises(const char *action)
{
	return strncmp(action, "error", 5) == 0 || strncmp(action, "fatal", 5) == 0;
}

void
outbox_fault_point(const char *name, const char *type, int may_raise)
{
	char		path[MAXPGPATH];
	char		line[64];
	const char *after;
	int			error = errno;

	if (type != NULL)
	{
		snprintf(path, sizeof(path), DIRECTORY "/%s@%s", name, type);
		if (read_line(path, line, sizeof(line)))
			act(name, line);
	}
	snprintf(path, sizeof(path), DIRECTORY "/%s", name);
	if (!read_line(path, line, sizeof(line)))
		*hits_of(name) = 0;
	else if (may_raise || !raises(line))
	{
		after = strchr(line, ' ');
		if ((*hits_of(name))++ >= (after == NULL ? 0 : atoi(after)) && unlink(path) == 0)
			act(name, line);
	}
	errno = error;
}

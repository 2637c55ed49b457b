/*
 * Fault points: named places where a test build (make FAULTS=1) can be made to fail. In a normal build there is nothing of it.
 *
 * At each point a test build looks for a file outbox.fault/NAME in the data directory, with one line: ACTION [HITS].  It passes the point HITS times (0), then removes the file and
 * acts; whose removal succeeds acts, so it is done once.  ACTION is
 *
 *	error		an ERROR; fatal: a FATAL
 *	sleep:MS	stands still for so long
 *	stop		SIGSTOP to itself; term: SIGTERM; kill: SIGKILL; crash: SIGSEGV
 *
 * A point that is about an event also looks for NAME@TYPE, with the event's type; that file stays, and the point acts every time: a poisonous event.
 *
 * test/fault/points lists them.  This header knows nothing of PostgreSQL, because http.c includes it.
 */
#ifndef OUTBOX_FAULT_H
#define OUTBOX_FAULT_H

#ifdef OUTBOX_FAULTS

/* may_raise: an error may be raised here. If not, error and fatal are left alone, file and all. */
extern __attribute__((visibility("default"))) void outbox_fault_point(const char *name, const char *type, int may_raise);

#define OUTBOX_FAULT(name) outbox_fault_point((name), 0, 1)
#define OUTBOX_FAULT_IF(condition, name) ((condition) ? outbox_fault_point((name), 0, 1) : (void) 0)
#define OUTBOX_FAULT_EVENT(name, type) outbox_fault_point((name), (type), 1)
#define OUTBOX_FAULT_QUIET(name) outbox_fault_point((name), 0, 0)	/* in a callback of libcurl, after a commit, half way through a change of state */

#else

#define OUTBOX_FAULT(name) ((void) 0)
#define OUTBOX_FAULT_IF(condition, name) ((void) 0)
#define OUTBOX_FAULT_EVENT(name, type) ((void) 0)
#define OUTBOX_FAULT_QUIET(name) ((void) 0)

#endif
#endif							/* OUTBOX_FAULT_H */

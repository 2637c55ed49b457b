/*
 * Every setting (GUC) of outbox.  Times are in the unit of the name's comment; sizes in kB.
 */
#ifndef OUTBOX_SETTINGS_H
#define OUTBOX_SETTINGS_H

#include <stdbool.h>

typedef enum OutboxAttemptLog
{
	OUTBOX_ATTEMPTS_ALL,
	OUTBOX_ATTEMPTS_FAILURES,
	OUTBOX_ATTEMPTS_NONE
} OutboxAttemptLog;

extern PGDLLIMPORT bool outbox_enabled; /* SIGHUP: the server-wide switch; off always wins */
extern PGDLLIMPORT char *outbox_armed;	/* SUSET: epoch armed by start(); counts only when set for the database */
extern PGDLLIMPORT bool outbox_auto_maintain;	/* SIGHUP: the worker runs maintain() itself */
extern PGDLLIMPORT int outbox_maintenance_interval;	/* SIGHUP, s, 10: how often it does */
extern PGDLLIMPORT int outbox_max_payload;	/* SIGHUP, kB, 1 MB */
extern PGDLLIMPORT int outbox_event_retention;	/* SIGHUP, s, 3 d */
extern PGDLLIMPORT int outbox_attempt_retention;	/* SIGHUP, s, 3 d */
extern PGDLLIMPORT int outbox_dead_letter_retention;	/* SIGHUP, s, 30 d */
extern PGDLLIMPORT int outbox_max_backlog_age;	/* SIGHUP, s, 14 d: how old a full segment may get that a subscription holds; 0: any age */
extern PGDLLIMPORT int outbox_max_backlog_size; /* SIGHUP, kB, 0: and how many of them it may hold; 0: any number */
extern PGDLLIMPORT int outbox_dedup_window;	/* SIGHUP, s, 1 d */
extern PGDLLIMPORT int outbox_segment_size; /* SIGHUP, kB, 1 GB: rotate when the current segment is larger */
extern PGDLLIMPORT int outbox_segment_age;	/* SIGHUP, s, 0: rotate when it is older; 0: event_retention / 12 */
extern PGDLLIMPORT int outbox_attempt_log;	/* SIGHUP, enum OutboxAttemptLog: all | failures | none */
extern PGDLLIMPORT int outbox_max_in_flight;	/* SIGHUP, 512: requests at a time, all subscriptions of a database together */
extern PGDLLIMPORT int outbox_max_in_flight_per_tenant;	/* SIGHUP, 50: of those, of the subscriptions of one tenant */
extern PGDLLIMPORT int outbox_inbox_retention;	/* SIGHUP, s, 7 d */
extern PGDLLIMPORT int outbox_request_retention;	/* SIGHUP, s, 24 h */
extern PGDLLIMPORT int outbox_request_lease;	/* USERSET, s, 1 min */
extern PGDLLIMPORT int outbox_max_response; /* SIGHUP, kB, 1 MB */
extern PGDLLIMPORT char *outbox_source; /* SIGHUP, '': CloudEvents source; empty: urn:outbox:<database name, percent-encoded> */
extern PGDLLIMPORT char *outbox_secret_key_file; /* SIGHUP, superusers only, '': keys for secrets at rest; empty: they are stored as they are */
extern PGDLLIMPORT char *outbox_traceparent;	/* USERSET, '': W3C trace context of the events this session enqueues */
extern PGDLLIMPORT int outbox_max_databases;	/* POSTMASTER, 16: slots in shared memory */
extern PGDLLIMPORT int outbox_max_subscriptions;	/* POSTMASTER, 10000: in a database; and those whose state is shown, of all databases together */

extern PGDLLIMPORT int outbox_max_subscriptions_per_tenant;	/* SIGHUP, 50 */

extern void outbox_settings_define(void);

/* A setting of PostgreSQL's that one of our processes must have, whatever is set for the server, the database or the role. */
typedef struct OutboxPinned
{
	const char *name;
	const char *value;
} OutboxPinned;

/* For a process of ours, before its first transaction: what all of them need, and what is its own. */
extern PGDLLEXPORT void outbox_settings_pin(const OutboxPinned *own, int n);

#endif							/* OUTBOX_SETTINGS_H */

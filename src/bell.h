/*
 * The bell: the shared memory between producers, operators, launcher and delivery workers, and the commit hook that rings.
 *
 * One OutboxDatabase per database with the extension in use.  Nothing here survives a server restart and nothing here needs
 * to: the id clock is floored from the log, the current segment is the one with the newest id, the rest is status.
 * No process-local pointer is ever stored here.
 */
#ifndef OUTBOX_BELL_H
#define OUTBOX_BELL_H

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/lwlock.h"

/* Raised whenever the layout below, or an exported function, changes; outbox_delivery refuses another number. */
#define OUTBOX_ABI 1

#define OUTBOX_SEGMENTS 16
#define OUTBOX_NO_SEGMENT UINT32_MAX
#define OUTBOX_NO_PROC UINT32_MAX

/* Why the bell rang (bits). */
#define OUTBOX_RING_EVENTS			0x01	/* committed events, or a segment was sealed: tick */
#define OUTBOX_RING_SUBSCRIPTIONS	0x02	/* subscriptions changed: reload */
#define OUTBOX_RING_DELIVERIES		0x04	/* an operator changed deliveries: resync */
#define OUTBOX_RING_ARMED			0x08	/* start() or stop(): tell the launcher */
#define OUTBOX_RING_CALLS			0x10	/* a backend asks, or has ended a transaction that settled events (call.h) */
#define OUTBOX_RING_SCHEDULED		0x20	/* scheduled events of a prepared transaction: look for what is due */

/* How a delivery worker ended, for the launcher. */
typedef enum OutboxWorkerEnd
{
	OUTBOX_END_ERROR = 0,		/* anything unforeseen: restart, with back-off */
	OUTBOX_END_DISARMED,		/* not armed here, or no extension: start again only when told */
	OUTBOX_END_YIELD			/* gave way to a command: start again when nobody asks to yield */
} OutboxWorkerEnd;

typedef struct OutboxSegmentState
{
	bool		sealed;			/* no writer can be in it any more */
	uint64		seal_tick;		/* the first tick that surely began after the sealing: the last to read it */
} OutboxSegmentState;

/* Consumers whose duplicates are counted, per database. */
#define OUTBOX_REFUSALS 128
#define OUTBOX_MAX_CONSUMER 128	/* bytes of a consumer's name */

/* Duplicates that accept() refused a consumer since they were last written down. */
typedef struct OutboxRefusals
{
	pg_atomic_uint64 consumer;	/* hash of the name; 0: free.  Set last, under the slot's lock */
	pg_atomic_uint64 count;
	char		name[OUTBOX_MAX_CONSUMER + 1];
} OutboxRefusals;

/* What the worker says about itself, for views and health(). */
typedef struct OutboxWorkerStatus
{
	TimestampTz started_at;
	TimestampTz turn_at;		/* end of the last turn of the loop */
	TimestampTz tick_at;		/* last tick */
	TimestampTz maintained_at;	/* last round of maintenance (by anyone) */
	uint64		tick;			/* head tick */
	uint64		offset;			/* events ticked so far */
	uint64		delivered;		/* attempts that ended in 2xx, since the server started */
	uint64		failed;			/* the other attempts */
	int32		in_flight;
	char		error[160];		/* last error of a turn */
	TimestampTz error_at;
} OutboxWorkerStatus;

typedef struct OutboxDatabase
{
	/* what producers read and what they write lie in different cache lines, or each event would take the first from all other processors */
	Oid			database;		/* InvalidOid: free slot */
	Oid			extension;		/* pg_extension.oid; a new one resets the slot */
	pg_atomic_uint32 current;	/* current segment; OUTBOX_NO_SEGMENT: not floored yet */
	char		apart[PG_CACHE_LINE_SIZE];
	pg_atomic_uint64 clock;		/* event_id.h; 0: not floored yet; never goes back for the same database */
	char		alone[PG_CACHE_LINE_SIZE];
	LWLock		lock;			/* guards what is not atomic, here and below */

	/* the log */
	pg_atomic_uint64 tick;		/* number of the newest tick that has begun; advanced before its snapshot is taken */
	OutboxSegmentState segments[OUTBOX_SEGMENTS];
	TimestampTz rotated_at;
	pg_atomic_uint64 due;		/* TimestampTz: no scheduled event that its producer told of is due earlier; DT_NOEND: none */

	/* the receiving side */
	OutboxRefusals refusals[OUTBOX_REFUSALS];
	uint32		expiry_hands[2];	/* expiry.c: the block to look at next; whoever holds the ring's lock changes them */

	/* the bell */
	pg_atomic_uint32 rung;		/* OUTBOX_RING_* since the worker last looked */
	pg_atomic_uint32 worker;	/* proc number of the delivery worker, or OUTBOX_NO_PROC */
	pg_atomic_uint32 prepared;	/* OUTBOX_RING_* that prepared transactions have noted: what a COMMIT PREPARED may bring */

	/* the worker's life */
	pid_t		worker_pid;		/* 0: none */
	OutboxWorkerEnd worker_end;
	uint32		yield;			/* commands that need the worker gone */
	bool		wanted;			/* the launcher believes this database is armed */
	ConditionVariable worker_gone;
	ConditionVariable recorded; /* broadcast when outcomes or cursors were recorded, or subscriptions changed */
	pg_atomic_uint32 awaited;	/* sessions that sleep on it */
	char		trouble[160];	/* why there is no worker ("no free background worker slot"); empty: none */
	OutboxWorkerStatus status;
} OutboxDatabase;

/* Runtime state of a subscription, for views: written by the worker, read by anyone under the slot's lock. */
typedef struct OutboxLaneStatus
{
	int32		in_flight;
	int32		exceptions;		/* delivery rows that are not dead */
	int32		blocked_keys;
	bool		at_head;
	uint64		offset;			/* events of the log passed */
	TimestampTz oldest_at;		/* created_at of the oldest event not done; 0: none */
	TimestampTz last_success_at;
	TimestampTz last_error_at;
	TimestampTz breaker_open_until;
	TimestampTz next_probe_at;
	char		last_error[128];
} OutboxLaneStatus;

/* What everyone shares with the launcher and its lister. */
typedef struct OutboxLauncher
{
	LWLock		lock;			/* guards what is not atomic below */
	pg_atomic_uint32 proc;		/* proc number of the launcher, or OUTBOX_NO_PROC */
	pg_atomic_uint64 told;		/* times that a database was armed or disarmed, or the configuration read again */
	pg_atomic_uint64 listed;	/* listers that reached their end */
	pid_t		pid;			/* 0: none */
	pid_t		lister_pid;		/* 0: none */
	char		trouble[160];	/* why there is no lister; empty: none */
	uint32		holds;			/* commands during which no lister may be connected anywhere */
	ConditionVariable lister_gone;
} OutboxLauncher;

/* ---- life of the shared memory (module.c, at preload) ---- */
extern void outbox_bell_request(void);	/* shmem_request_hook */
extern void outbox_bell_startup(void);	/* shmem_startup_hook */
extern bool outbox_bell_ready(void);	/* false: the library was not preloaded */
extern void outbox_bell_install(void);	/* the commit hook: once, in the postmaster; every backend inherits it */

/* ---- slots ---- */

/* This database's slot, made if need be (reset when the extension is another); raises if preload is missing or all slots are taken. */
extern PGDLLEXPORT OutboxDatabase *outbox_bell_database(Oid extension);

/* The slot by number, for launcher and workers; NULL past the end.  And how many there are. */
extern PGDLLEXPORT OutboxDatabase *outbox_bell_slot(int number);
extern PGDLLEXPORT int outbox_bell_slots(void);

/*
 * A lock for a key with this hash, of any kind, in any database; others may share it.  Held only for a look into an index and an insertion: never while
 * waiting for another transaction, never two at a time.
 */
extern LWLock *outbox_bell_key_lock(uint64 hash);

/* ---- ringing ---- */

/* Remember, until this transaction commits, to ring this database's worker.  Never fails. */
extern PGDLLEXPORT void outbox_bell_note(OutboxDatabase *database, uint32 reasons);

/* Remember, until this transaction commits, that it scheduled an event for this time.  Never fails. */
extern void outbox_bell_note_due(OutboxDatabase *database, TimestampTz at);

/* Lowers the time at which the next scheduled event is due; false: it is that early already. */
extern PGDLLEXPORT bool outbox_bell_lower_due(OutboxDatabase *database, TimestampTz at);

/* Ring now (not at commit). */
extern PGDLLEXPORT void outbox_bell_ring(OutboxDatabase *database, uint32 reasons);

/* ---- the worker's side ---- */

/*
 * Claims the slot for this process until it exits; false if another one has it, or a command needs the worker gone: then exit, at best without
 * having connected to the database. Detaches by itself at exit, saying how it ended.
 */
extern PGDLLEXPORT bool outbox_bell_attach(OutboxDatabase *database);
extern PGDLLEXPORT void outbox_bell_set_end(OutboxDatabase *database, OutboxWorkerEnd end);

/* Does a command need this worker gone? */
extern PGDLLEXPORT bool outbox_bell_must_yield(OutboxDatabase *database);

/* Takes and clears the reasons. */
extern PGDLLEXPORT uint32 outbox_bell_answer(OutboxDatabase *database);

/* The runtime state of a subscription (an element of shared memory), made if need be; NULL when outbox.max_subscriptions are in use. */
extern PGDLLEXPORT OutboxLaneStatus *outbox_bell_lane(OutboxDatabase *database, int32 subscription, bool create);
extern PGDLLEXPORT void outbox_bell_forget_lane(OutboxDatabase *database, int32 subscription);

/* ---- the launcher's side, and the operator's ---- */

extern OutboxLauncher *outbox_bell_launcher(void);
extern void outbox_bell_wake_launcher(void);

/* The slot of a database, or NULL: it has none, or the library was not preloaded. */
extern OutboxDatabase *outbox_bell_find(Oid database);

/* Frees the slot of a database that is gone, unless a worker has it. */
extern void outbox_bell_free(Oid database);

/* Arm or disarm this database when this transaction commits. */
extern void outbox_bell_note_armed(OutboxDatabase *database, bool armed);

/*
 * What a lister found: these databases (OIDs), and no others, are armed. Makes slots, and says how many could not be made. When someone was
 * armed or disarmed since `told` was read, nothing is taken back: the launcher will list again.
 */
extern int	outbox_bell_listed(List *armed, uint64 told);

/* A copy of the runtime state of all subscriptions of this slot's extension, palloc'd. */
typedef struct OutboxLaneCopy
{
	int32		subscription;
	OutboxLaneStatus status;
} OutboxLaneCopy;

extern OutboxLaneCopy *outbox_bell_copy_lanes(OutboxDatabase *database, int *n);

/* Compared by outbox_delivery before it touches any of the above. */
extern PGDLLEXPORT int outbox_abi(void);

#endif							/* OUTBOX_BELL_H */

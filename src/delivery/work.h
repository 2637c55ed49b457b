/*
 * What the steps of a turn share: whose log it is, where the head is, and what there is to do; and their short transactions.
 */
#ifndef OUTBOX_WORK_H
#define OUTBOX_WORK_H

#include "bell.h"
#include "tick.h"

/* The steps that touch tables.  Each is put off by itself, so that one that cannot go on does not stop the others. */
typedef enum OutboxStep
{
	OUTBOX_STEP_RELOAD,
	OUTBOX_STEP_MOVE,
	OUTBOX_STEP_READ,
	OUTBOX_STEP_RECORD,
	OUTBOX_STEP_REPLAY,
	OUTBOX_STEP_MAINTAIN,
	OUTBOX_STEPS
} OutboxStep;

typedef struct OutboxWork
{
	OutboxDatabase *database;
	Oid			extension;
	Oid			schema;
	int64		epoch;
	MemoryContext context;		/* of the turn: reset at its end */

	OutboxPosition head;		/* how far the log has been read for everybody who keeps up */
	uint64		head_offset;	/* events up to the head */
	OutboxTick *newest;			/* durable; where lanes that read for themselves stop */
	uint64		start_clock;	/* events older than this worker may have delivery rows already */

	bool		over;			/* this database is not ours any more … */
	bool		gone;			/* … because the extension is gone */
	bool		changing;		/* memory is: an error now would leave a change half made, so the worker ends and begins again at its cursors */
	bool		want_tick;
	bool		want_reload;	/* subscriptions changed */
	bool		want_resync;	/* an operator changed deliveries */
	bool		moved;			/* cursors may have, since the last checkpoint */
	TimestampTz noted_at;		/* when the oldest unwritten note was seen; 0: none */
	OutboxStep	step;			/* the one that is going on */
	TimestampTz not_before[OUTBOX_STEPS];
} OutboxWork;

extern OutboxWork outbox_work;

/* Begins a step, if it is not put off. */
extern bool outbox_work_step(OutboxStep step, TimestampTz now);

/* Opens a transaction on an extension that is there and stays there until its end; false: not now (the step is put off), or over. */
extern bool outbox_work_begin(const char *activity);
extern void outbox_work_commit(void);

/* Puts the step that is going on off for a while: after an error, or when something is locked. */
extern void outbox_work_pause(int ms);

#define OUTBOX_PAUSE_MS 1000	/* after an error */
#define OUTBOX_BUSY_MS 100		/* when something is locked */

#endif							/* OUTBOX_WORK_H */

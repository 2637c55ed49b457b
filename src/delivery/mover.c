/*
 * When to move scheduled events.
 *
 * Shared memory has the time from which on there may be one to move (`due` of bell.h): whoever schedules an event that is earlier lowers it at commit.  Here it is raised again, to the next one that the table
 * has, after each move.  So a million events that wait cost nothing, and a move reads the index from that time on, past no rows that were moved long ago.
 *
 * What nobody told of (a transaction prepared before a crash, a row changed by hand), and what was locked at its time, is found by looking from the beginning now and then.
 */
#include "postgres.h"

#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "fault.h"
#include "mover.h"
#include "schedule.h"
#include "work.h"

#define MOVE_BUDGET_US 10000	/* of one move: live events wait so long at most */
#define LOOK_MS 10000			/* look from the beginning … */
#define LOOK_OFTEN_MS 1000		/* … if transactions that scheduled something have been prepared … */
#define LOOK_AGAIN_MS 200		/* … if something that is due was locked */
#define LOOK_SHARE 50			/* … but for no more than a fiftieth of the time */
#define CAREFUL_MOVES 100		/* after an error while moving */

static OutboxWork *const work = &outbox_work;
static bool must_look = true;	/* what is known of the next one is not all */
static TimestampTz look_at;
static bool moving = false;	/* an error now comes from moving */
static int	careful = 0;		/* moves left that go row by row */

static TimestampTz
due(void)
{
	return (TimestampTz) pg_atomic_read_u64(&work->database->due);
}

static void
plan_look(const OutboxMove *move, TimestampTz began_at, bool looked)
{
	TimestampTz now = GetCurrentTimestamp();
	int			interval = LOOK_MS;

	if (pg_atomic_read_u32(&work->database->prepared) & OUTBOX_RING_SCHEDULED)
		interval = LOOK_OFTEN_MS;
	if (move->skipped)
		interval = LOOK_AGAIN_MS;
	if (looked)
		look_at = Max(TimestampTzPlusMilliseconds(now, interval), now + LOOK_SHARE * (now - began_at));
	else
		look_at = Min(look_at, TimestampTzPlusMilliseconds(now, interval));
}

bool
outbox_mover_step(TimestampTz now, bool look)
{
	OutboxMove	move;
	TimestampTz from;

	must_look = must_look || look || now >= look_at;
	if ((!must_look && due() > now) || !outbox_work_step(OUTBOX_STEP_MOVE, now))
		return false;
	if (!outbox_work_begin("moving scheduled events"))
		return false;

	/* Taken before the table is looked at: who commits later finds this, and tells. Should this fail, all is looked at again. */
	from = (TimestampTz) pg_atomic_exchange_u64(&work->database->due, (uint64) DT_NOEND);
	look = must_look;
	must_look = true;
	PushActiveSnapshot(GetTransactionSnapshot());
	moving = true;
	move = outbox_schedule_move(look ? DT_NOBEGIN : from, now, MOVE_BUDGET_US, careful > 0);
	moving = false;
	PopActiveSnapshot();
	OUTBOX_FAULT("move-before-commit");
	outbox_work_commit();
	OUTBOX_FAULT("move-after-commit");

	if (move.busy)
	{
		outbox_work_pause(OUTBOX_BUSY_MS);
		return false;
	}
	must_look = false;
	if (move.failed > 0)
		careful = CAREFUL_MOVES;
	else if (careful > 0)
		careful--;
	(void) outbox_bell_lower_due(work->database, move.next);
	plan_look(&move, now, look);
	if (move.failed > 0 || (move.skipped && move.moved == 0))
		outbox_work_pause(OUTBOX_BUSY_MS);	/* there may be many such */
	work->want_tick = work->want_tick || move.moved > 0;
	return move.moved > 0;
}

void
outbox_mover_failed(void)
{
	if (moving)
		careful = CAREFUL_MOVES;
	moving = false;
}

TimestampTz
outbox_mover_next(void)
{
	return Max(must_look ? DT_NOBEGIN : Min(due(), look_at), work->not_before[OUTBOX_STEP_MOVE]);
}

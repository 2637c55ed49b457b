/*
 * Recording.
 *
 * What was noted is written within moments, asynchronously: losing it can only repeat.  At a checkpoint the same transaction also writes the cursors that the
 * outcomes allow, and commits synchronously.
 *
 * A cursor stays before what has been overtaken only lately: that gets a row, which lets the cursor pass, if it is still not done at the next checkpoint.  So a crash repeats what was
 * done since the last checkpoint but one; two intervals are what guarantee 4 allows.
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "pgstat.h"
#include "storage/lwlock.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "backlog.h"
#include "cursors.h"
#include "dispatch.h"
#include "event_log.h"
#include "fault.h"
#include "ledger.h"
#include "recorder.h"
#include "restore.h"
#include "routing.h"
#include "settings.h"
#include "status.h"
#include "work.h"

#define RECORD_MS 25			/* outcomes wait at most this long … */
#define RECORD_NOTES 1000		/* … or until there are so many */
#define PUT_OFF_MS 1000			/* a locked row is looked at again */
#define CHECKPOINT_MS 500		/* cursors: half of what guarantee 4 says */
#define FIRST_CHECKPOINT_MS 25	/* after a start: who is killed again and again must get on, too … */
#define CHECKPOINT_GROWS 1.5	/* … but then the interval grows */
#define AWAITED_MS 50			/* the same, when somebody waits for what only cursors tell (wait_delivered) */
#define CHECKPOINT_EVENTS 5000
#define NOTES_AT_MOST 50000	/* that wait for a table or a row: each is about a kilobyte */

static OutboxWork *const work = &outbox_work;
static bool full_state = true;	/* the next checkpoint writes every cursor */
static int	done = 0;			/* items, since the last checkpoint */
static bool young = false;		/* cursors wait for items that were overtaken since the last mark: another checkpoint must follow */
static TimestampTz marked_at;	/* when all lanes were marked */
static uint64 written_head;		/* base tick of the newest committed head row */
static TimestampTz checkpoint_at;
static int	interval = FIRST_CHECKPOINT_MS;

static bool
lane_moved(OutboxLane *lane, OutboxPosition *position, bool *at_head)
{
	*at_head = !outbox_lane_cursor(lane, position);
	if (full_state)
		return true;
	if (*at_head)
		return !lane->marked;
	return lane->marked || lane->written.base == NULL || !outbox_position_same(position, &lane->written);
}

static void
write_cursors(void)
{
	ListCell   *cell;

	outbox_cursors_put(work->epoch, 0, false, &work->head, work->head_offset);
	foreach(cell, outbox_lane_all())
	{
		OutboxLane *lane = lfirst(cell);
		OutboxPosition position = {0};
		bool		at_head;

		if (!lane->at_head && lane->position.base == NULL)
			continue;			/* not placed yet */
		if (!lane_moved(lane, &position, &at_head))
			continue;
		outbox_cursors_put(work->epoch, lane->subscription->id, at_head, at_head ? NULL : &position,
						   outbox_lane_offset(lane));
		lane->marked = at_head;
		if (at_head)
			outbox_position_clear(&lane->written);
		else
			outbox_position_set(&lane->written, &position);
	}
}

/* Earlier matching rules are history for a lane whose base has seen all that they apply to. Their rows stay, for event_status(). */
static void
forget_history(void)
{
	bool		forgotten = false;
	ListCell   *cell;

	work->changing = true;
	foreach(cell, outbox_lane_all())
	{
		OutboxLane *lane = lfirst(cell);
		OutboxPosition position;

		if (lane->subscription->n_earlier == 0 || (!lane->at_head && lane->position.base == NULL))
			continue;
		if (!outbox_lane_cursor(lane, &position))
			position = work->head;
		if (position.base->snapshot != NULL && outbox_subscription_forget(lane->subscription, position.base->snapshot))
			forgotten = true;
	}
	if (forgotten)
		outbox_routing_index(outbox_lane_all());
	work->changing = false;
}

/* Writes what was noted, and with a checkpoint the cursors that it allows, in one transaction. */
static void
record(bool checkpoint, TimestampTz now)
{
	volatile bool written = false;

	if (!outbox_work_begin(checkpoint ? "recording outcomes and cursors" : "recording outcomes"))
		return;
	PG_TRY();
	{
		SPI_connect();
		PushActiveSnapshot(GetTransactionSnapshot());
		outbox_ledger_write(outbox_catalog());
		if (checkpoint)
		{
			if (outbox_cursors_turn())
				full_state = true;
			outbox_backlog_write();
			write_cursors();
			outbox_cursors_write(outbox_catalog());
			OUTBOX_FAULT("checkpoint-before-commit");
			ForceSyncCommit();
		}
		if (work->want_resync)
			outbox_restore_resync();
		PopActiveSnapshot();
		SPI_finish();
		OUTBOX_FAULT("record-before-commit");
		CommitTransactionCommand();
		MemoryContextSwitchTo(work->context);
		written = true;
	}
	PG_FINALLY();
	{
		if (!written)
		{
			outbox_ledger_failed();
			outbox_cursors_failed();
			full_state = true;
		}
	}
	PG_END_TRY();
	OUTBOX_FAULT_QUIET("record-after-commit");

	/* resume() changes deliveries too; our own changes do not ring */
	if (outbox_ledger_committed())
		work->want_reload = work->want_resync = true;
	pgstat_report_stat(false);
	ConditionVariableBroadcast(&work->database->recorded);

	/* what is left was put off: somebody has locked the row */
	work->noted_at = outbox_ledger_pending() > 0 ? TimestampTzPlusMilliseconds(now, PUT_OFF_MS) : 0;
	if (checkpoint)
	{
		outbox_backlog_committed();
		forget_history();
		full_state = false;
		work->moved = young;
		done = 0;
		checkpoint_at = now;

		/* somebody may have made this one early (AWAITED_MS): that is no reason for rows */
		if (TimestampDifferenceExceeds(marked_at, now, interval))
		{
			outbox_dispatch_mark(0);
			marked_at = now;
		}
		else
			outbox_dispatch_mark(CHECKPOINT_EVENTS / 2);	/* what lanes finish between two marks is not quite what checkpoints count */
		interval = Min(interval * CHECKPOINT_GROWS, CHECKPOINT_MS);
		written_head = work->head.base->number;
		OUTBOX_FAULT("checkpoint-after-commit");
	}
}

/* A sealed segment waits for a committed head behind its seal. */
bool
outbox_recorder_seal_waits(void)
{
	bool		waits = false;

	LWLockAcquire(&work->database->lock, LW_SHARED);
	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		OutboxSegmentState *segment = &work->database->segments[i];

		if (segment->sealed && segment->seal_tick > written_head && segment->seal_tick <= work->head.base->number)
			waits = true;
	}
	LWLockRelease(&work->database->lock);
	return waits;
}

static int
checkpoint_ms(void)
{
	return outbox_attempt_log != OUTBOX_ATTEMPTS_ALL && pg_atomic_read_u32(&work->database->awaited) > 0 ? Min(interval, AWAITED_MS) : interval;
}

static bool
checkpoint_due(TimestampTz now)
{
	done += outbox_item_done();
	if (!work->moved && !full_state)
		return false;
	return full_state || done >= CHECKPOINT_EVENTS || TimestampDifferenceExceeds(checkpoint_at, now, checkpoint_ms()) ||
		TimestampDifferenceExceeds(marked_at, now, interval);
}

void
outbox_recorder_step(TimestampTz now)
{
	bool		checkpoint = checkpoint_due(now);

	/* whoever noted it: nothing waits for the next outcome of a request */
	if (work->noted_at == 0 && outbox_ledger_pending() > 0)
		work->noted_at = now;
	if (!outbox_work_step(OUTBOX_STEP_RECORD, now))
		return;
	if (checkpoint)
	{
		work->changing = true;
		young = outbox_dispatch_pass_overtaken();
		work->changing = false;
		outbox_status_publish(work->database);
	}
	if (checkpoint || work->want_resync || outbox_ledger_pending() >= RECORD_NOTES ||
		(work->noted_at != 0 && TimestampDifferenceExceeds(work->noted_at, now, RECORD_MS)))
		record(checkpoint, now);
}

void
outbox_recorder_finish(TimestampTz now)
{
	work->step = OUTBOX_STEP_RECORD;
	outbox_dispatch_mark(0);
	(void) outbox_dispatch_pass_overtaken();
	record(true, now);
}

TimestampTz
outbox_recorder_next(void)
{
	TimestampTz next = DT_NOEND;

	if (work->noted_at != 0)
		next = TimestampTzPlusMilliseconds(work->noted_at, RECORD_MS);
	if (work->moved)
		next = Min(next, Min(TimestampTzPlusMilliseconds(checkpoint_at, checkpoint_ms()), TimestampTzPlusMilliseconds(marked_at, interval)));
	return TIMESTAMP_IS_NOEND(next) ? next : Max(next, work->not_before[OUTBOX_STEP_RECORD]);
}

bool
outbox_recorder_overdue(void)
{
	done += outbox_item_done();
	return done >= CHECKPOINT_EVENTS || outbox_ledger_pending() >= NOTES_AT_MOST;
}

bool
outbox_recorder_complete(void)
{
	return !full_state;
}

/*
 * One turn of the loop.
 *
 * Every step that touches tables is one short transaction; no transaction is open while something is sent.  Steps keep their state in
 * memory, and change it only after their transaction has committed, so a step that raises is simply done again later.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "backlog.h"
#include "cursors.h"
#include "dispatch.h"
#include "event_log.h"
#include "fault.h"
#include "lease.h"
#include "ledger.h"
#include "mover.h"
#include "reader.h"
#include "recorder.h"
#include "replay.h"
#include "restore.h"
#include "upkeep.h"
#include "sender.h"
#include "settings.h"
#include "suspect.h"
#include "turn.h"
#include "work.h"

static OutboxWork *const work = &outbox_work;
static TimestampTz maintained_at;
static bool want_renewal = true; /* secrets may be under another key than the first */
static bool maintain_more = false;

#define MORE_MS 200				/* the next round, if the last one was not through */

void
outbox_turn_start(OutboxDatabase *database)
{
	work->database = database;
	work->context = AllocSetContextCreate(TopMemoryContext, "outbox turn", ALLOCSET_DEFAULT_SIZES);
	outbox_dispatch_init(database);
	outbox_lease_init();
	outbox_restore_start();
	outbox_suspect_start(MyDatabaseId, work->epoch);
	if (!work->over)
		outbox_sender_start();
}

int
outbox_turn_descriptor(void)
{
	return outbox_sender_descriptor();
}

bool
outbox_turn_over(void)
{
	return work->over;
}

bool
outbox_turn_is_awaited(void)
{
	return outbox_lane_is_any() || outbox_dispatch_in_flight() > 0;
}

/* All that waits here waits for times of the clock. If it is set back, everything would wait for so long. */
bool
outbox_turn_clock_went_back(void)
{
	static TimestampTz last = 0;
	TimestampTz before = last;

	last = GetCurrentTimestamp();
	return last < before - USECS_PER_SEC;
}

static void
maintain_step(TimestampTz now)
{
	if ((!want_renewal && !TimestampDifferenceExceeds(maintained_at, now, maintain_more ? MORE_MS : outbox_maintenance_interval * 1000)) ||
		!outbox_work_step(OUTBOX_STEP_MAINTAIN, now))
		return;
	maintained_at = now;
	outbox_suspect_forget(now);
	outbox_backlog_step();
	maintain_more = false;
	if (outbox_auto_maintain && outbox_work_begin("maintaining the event log"))
	{
		bool		again = false;
		ListCell   *cell;

		PushActiveSnapshot(GetTransactionSnapshot());
		foreach(cell, outbox_upkeep(want_renewal))
		{
			const OutboxMaintenance *entry = lfirst(cell);

			if (strcmp(entry->action, "deleted") == 0)
				work->want_resync = true;	/* a dead letter that held back its key may be gone */
			again |= strcmp(entry->action, "encrypted") == 0;	/* perhaps not all of them */
			maintain_more |= entry->more;
		}
		OUTBOX_FAULT("maintain-before-commit");
		PopActiveSnapshot();
		outbox_work_commit();
		OUTBOX_FAULT("maintain-after-commit");
		want_renewal = again;
	}
	else if (!outbox_auto_maintain)
		want_renewal = false;
	if (outbox_cursors_has_old() && outbox_recorder_complete() && outbox_work_begin("emptying old cursors"))
	{
		bool		emptied;

		PushActiveSnapshot(GetTransactionSnapshot());
		OUTBOX_FAULT("cursors-before-emptying");
		emptied = outbox_cursors_empty_old(outbox_catalog());
		OUTBOX_FAULT("cursors-before-emptied-commit");
		PopActiveSnapshot();
		outbox_work_commit();
		if (emptied)
			outbox_cursors_emptied();
		OUTBOX_FAULT("cursors-after-emptied-commit");
	}
	if (outbox_recorder_seal_waits())
		work->moved = true;
}

/* ---- the turn ---- */

static void
publish(TimestampTz now)
{
	OutboxWorkerStatus *status = &work->database->status;

	status->turn_at = now;
	status->tick = work->head.base->number;
	status->offset = work->head_offset;
	status->in_flight = outbox_dispatch_in_flight();
}

static long
time_to_wait(TimestampTz now)
{
	TimestampTz next = outbox_reader_next(now);
	long		timeout = outbox_sender_timeout();
	long		wait;

	if (outbox_sender_can_send())
		return 0;
	next = Min(next, Min(outbox_recorder_next(), Min(outbox_replay_next(), outbox_item_next_due())));
	next = Min(next, outbox_lane_next_wake());
	if (want_renewal)
		next = Min(next, work->not_before[OUTBOX_STEP_MAINTAIN]);
	next = Min(next, outbox_lease_next());
	next = Min(next, outbox_mover_next());
	if (maintain_more)
		next = Min(next, Max(TimestampTzPlusMilliseconds(maintained_at, MORE_MS), work->not_before[OUTBOX_STEP_MAINTAIN]));
	if (work->want_reload)
		next = Min(next, work->not_before[OUTBOX_STEP_RELOAD]);
	wait = next <= now ? 0 : TimestampDifferenceMilliseconds(now, next);
	return timeout >= 0 ? Min(timeout, wait) : wait;
}

long
outbox_turn_run(uint32 reasons)
{
	TimestampTz now = GetCurrentTimestamp();
	MemoryContext old = MemoryContextSwitchTo(work->context);
	bool		idle;

	if ((reasons & OUTBOX_RING_EVENTS) || outbox_reader_tick_due(now))
		work->want_tick = true;
	if ((reasons & OUTBOX_RING_SUBSCRIPTIONS) || outbox_restore_reload_at() <= now)
		work->want_reload = true;
	if (reasons & OUTBOX_RING_DELIVERIES)
		work->want_resync = true;

	if (work->want_reload && outbox_work_step(OUTBOX_STEP_RELOAD, now))
	{
		outbox_restore_reload();
		ConditionVariableBroadcast(&work->database->recorded);	/* who waited for one that is gone waits no longer */
	}
	if (!work->over && outbox_mover_step(now, reasons & OUTBOX_RING_SCHEDULED))
		now = GetCurrentTimestamp();	/* no attempt begins before its event was due */
	outbox_reader_confirm();
	if (!work->over)
		outbox_reader_step(now);
	idle = outbox_lease_step(now);
	idle &= outbox_sender_step(now);
	if (!work->over)
		outbox_recorder_step(GetCurrentTimestamp());
	if (!work->over)
		outbox_replay_step(GetCurrentTimestamp());
	if (!work->over)
		maintain_step(now);

	OUTBOX_FAULT_IF(outbox_dispatch_in_flight() > 0, "send-in-flight");
	now = GetCurrentTimestamp();
	publish(now);
	MemoryContextSwitchTo(old);
	MemoryContextReset(work->context);
	return idle && !work->over ? time_to_wait(now) : 0;
}

void
outbox_turn_reloaded(void)
{
	work->want_reload = true;
	want_renewal = true;
}

bool
outbox_turn_must_end(bool blameless)
{
	if (work->changing && !blameless)
		outbox_suspect_blame();
	return work->changing;
}

void
outbox_turn_failed(void)
{
	MemoryContextReset(work->context);
	outbox_log_reading = NULL;
	outbox_suspect_nobody();
	outbox_work_pause(OUTBOX_PAUSE_MS);
	outbox_mover_failed();
	outbox_reader_failed();
}

void
outbox_turn_finish(void)
{
	if (!work->gone && work->head.base != NULL)
		outbox_recorder_finish(GetCurrentTimestamp());
}

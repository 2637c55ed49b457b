/*
 * Reading the log.
 *
 * The head extends by ticks and is read chunk by chunk for all lanes that keep up.  A lane that does not reads for itself, up to the newest durable tick, sharing chunks with whoever is at
 * the same place, until it has caught up.  Nothing is routed before the tick that saw it is durable.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "dispatch.h"
#include "event_id.h"
#include "event_log.h"
#include "fault.h"
#include "ledger.h"
#include "reader.h"
#include "restore.h"
#include "routing.h"
#include "work.h"

#define POLL_MS 1000			/* tick anyway: COMMIT PREPARED by an apply worker rings no bell */
#define CONFIRM_MS 5			/* look again whether the standbys have confirmed, or full lanes have room */
#define FETCH_AT_ONCE 256
#define READ_BUDGET_US 20000	/* of one reading transaction */
#define CAREFUL_READS 100		/* after an error while reading */

static OutboxWork *const work = &outbox_work;
static OutboxChunk *unconfirmed;	/* the head's next chunk, waiting for standbys, or for a reload */
static bool starving = false;	/* lanes could read more at once */
static bool reading = false;	/* an error now comes from reading the log */
static int	careful = 0;		/* reads left that go row by row */
static TimestampTz ticked_at;

static void
set_newest(OutboxTick *tick)
{
	OutboxTick *old = work->newest;

	if (tick->number <= old->number)
		return;
	work->newest = outbox_tick_pin(tick);
	outbox_tick_unpin(old);
}

/* The head moves over a chunk that may be sent. */
static void
advance_head(OutboxChunk *chunk)
{
	work->changing = true;
	outbox_dispatch_route(chunk, work->head_offset);
	work->changing = false;
	work->head_offset += chunk->n;
	outbox_position_set(&work->head, &chunk->to);
	if (!work->head.partial)
		work->head.base->offset = work->head_offset;
	if (chunk->n > 0)
		work->moved = true;
	set_newest(work->head.upper);
	outbox_chunk_unpin(chunk);
}

/* Is some event of the chunk older than this worker? */
static bool
may_be_settled(const OutboxPosition *position)
{
	if (position->partial && outbox_event_id_clock(&position->after) > work->start_clock)
		return false;
	return position->base->snapshot == NULL || position->base->snapshot->clock <= work->start_clock;
}

/* Lanes that are behind read from cached chunks as far as those go. */
static void
feed_from_cache(OutboxLane *lane)
{
	while (outbox_lane_is_hungry(lane))
	{
		OutboxChunk *chunk;

		if (lane->position.base == outbox_tick_everything())
			outbox_restore_done(lane);
		if (outbox_position_same(&lane->position, &work->head))
		{
			outbox_lane_attach(lane);
			return;
		}
		chunk = outbox_chunk_find(&lane->position, lane->need_settled, outbox_subscription_needs_bodies(lane->subscription));
		if (chunk == NULL || !outbox_tick_durable(chunk->to.upper))
		{
			if (chunk != NULL)
				outbox_chunk_unpin(chunk);
			return;
		}
		work->changing = true;
		outbox_dispatch_fill(lane, chunk);
		work->changing = false;
		outbox_chunk_unpin(chunk);
		work->moved = true;
	}
}

/*
 * A window must end after it begins: a tick sees what every lower number saw.  A subscription's own start has no number; the first tick taken
 * after the worker learned of it sees what that snapshot saw.
 */
static bool
needs_reading(const OutboxLane *lane)
{
	const OutboxPosition *position = &lane->position;

	if (!outbox_lane_is_hungry(lane) || !outbox_tick_durable(work->newest))
		return false;
	if (position->partial || position->restored != 0)
		return true;
	return work->newest->number > (position->base->number == 0 ? lane->not_before : position->base->number);
}

/* Reads for lanes that are behind, until the budget is used up. Those who are at the same place share. */
static void
feed(List *hungry, OutboxLog *log)
{
	TimestampTz begin_at = GetCurrentTimestamp();
	ListCell   *cell;

	foreach(cell, hungry)
	{
		OutboxLane *lane = lfirst(cell);

		feed_from_cache(lane);
		while (needs_reading(lane))
		{
			OutboxChunk *chunk;

			CHECK_FOR_INTERRUPTS();
			if (GetCurrentTimestamp() - begin_at > READ_BUDGET_US)
			{
				starving = true;
				return;
			}
			chunk = outbox_chunk_read(log, work->epoch, &lane->position,
									  lane->position.restored != 0 ? outbox_tick_everything() : work->newest,
									  careful > 0, lane->need_settled || may_be_settled(&lane->position),
									  outbox_routing_needs_bodies());
			outbox_chunk_unpin(chunk);
			feed_from_cache(lane);
		}
		outbox_lane_was_fed(lane);
	}
}

static void
fetch(OutboxLog *log)
{
	OutboxItem *items[FETCH_AT_ONCE];
	pg_uuid_t	ids[FETCH_AT_ONCE];
	int			n = outbox_dispatch_to_fetch(items, FETCH_AT_ONCE);
	OutboxChunk *chunk;

	if (n == 0)
		return;
	for (int i = 0; i < n; i++)
		ids[i] = items[i]->log_id;
	chunk = outbox_chunk_fetch(log, ids, &n);
	work->changing = true;
	outbox_dispatch_fetched(items, n, chunk);
	work->changing = false;
	outbox_chunk_unpin(chunk);
}

/* The head's next chunk: of the window it is in, or of a new one that a new tick closes. NULL: not now. */
static OutboxChunk *
read_head(bool tick_now, bool read_on)
{
	OutboxTick *tick;
	OutboxLog  *log;
	OutboxChunk *chunk;

	if (!tick_now && !read_on)
		return NULL;
	OUTBOX_FAULT("tick-before-snapshot");
	tick = tick_now ? outbox_tick_take(work->database) : outbox_tick_pin(work->head.upper);
	if (!tick_now)
		PushActiveSnapshot(GetTransactionSnapshot());
	log = outbox_log_open(!tick_now, work->head.base->number + 1);
	if (log == NULL)
		chunk = NULL;
	else
	{
		bool		settled = may_be_settled(&work->head);

		if (!settled)
			outbox_lane_head_is_new();
		chunk = outbox_chunk_read(log, work->epoch, &work->head, tick, careful > 0, settled, outbox_routing_needs_bodies());
		outbox_log_close(log);
	}
	PopActiveSnapshot();
	outbox_tick_unpin(tick);

	/* Rang before something that the tick saw was committed: what was changed applies to that already. */
	if (pg_atomic_read_u32(&work->database->rung) & OUTBOX_RING_SUBSCRIPTIONS)
		work->want_reload = true;
	return chunk;
}

/* Everything that reads the log, in one transaction. */
static void
read_log(List *hungry, bool tick_now, bool read_on, TimestampTz now)
{
	OutboxChunk *chunk;

	if (!outbox_work_begin("reading events"))
		return;
	reading = true;
	chunk = read_head(tick_now, read_on);
	if (tick_now)
		ticked_at = now;
	if (chunk != NULL)
	{
		work->want_tick = work->want_tick && !tick_now;
		unconfirmed = chunk;
	}
	if (hungry != NIL || outbox_dispatch_fetching())
	{
		/* locked first: what is retired until then is where the snapshot sees it */
		OutboxLog  *log = outbox_log_open(true, 0);

		PushActiveSnapshot(GetTransactionSnapshot());
		if (log != NULL)
		{
			feed(hungry, log);
			fetch(log);
			outbox_log_close(log);
		}
		else
			outbox_work_pause(OUTBOX_BUSY_MS);
		PopActiveSnapshot();
	}
	reading = false;
	outbox_work_commit();

	if (chunk == NULL && (tick_now || read_on))
		outbox_work_pause(OUTBOX_BUSY_MS);
	if (careful > 0)
		careful--;
}

/* The head's chunk may go on once nothing can undo what its tick saw. */
void
outbox_reader_confirm(void)
{
	OutboxTick *tick;

	if (unconfirmed == NULL || work->want_reload)
		return;

	/* It was read for others than there are now. */
	if (!unconfirmed->bodies && outbox_routing_needs_bodies())
	{
		outbox_chunk_unpin(unconfirmed);
		unconfirmed = NULL;
		work->want_tick = true;
		return;
	}
	tick = unconfirmed->to.upper;

	/* A tick that saw no event that the one before did not see is as durable as that one. */
	if (unconfirmed->n == 0 && outbox_tick_durable(work->head.base))
		tick->durable = true;
	else
		outbox_tick_flush(tick);
	if (outbox_tick_durable(tick))
	{
		OutboxChunk *chunk = unconfirmed;

		OUTBOX_FAULT("route-before");
		unconfirmed = NULL;
		advance_head(chunk);
		OUTBOX_FAULT("route-after");
	}
}

void
outbox_reader_step(TimestampTz now)
{
	List	   *hungry = NIL;
	ListCell   *cell;
	bool		tick_now = work->want_tick && !work->head.partial && unconfirmed == NULL;
	bool		read_on = work->head.partial && unconfirmed == NULL && outbox_lane_head_may_read(now);

	starving = false;
	foreach(cell, outbox_lane_hungry())
	{
		OutboxLane *lane = lfirst(cell);

		feed_from_cache(lane);
		if (needs_reading(lane) && (!lane->need_settled || outbox_ledger_new_rows() == 0))
			hungry = lappend(hungry, lane);
	}
	if (!(tick_now || read_on || hungry != NIL || outbox_dispatch_fetching()) ||
		!outbox_work_step(OUTBOX_STEP_READ, now))
		return;
	read_log(hungry, tick_now, read_on, now);
	outbox_reader_confirm();
}

void
outbox_reader_failed(void)
{
	if (reading)
		careful = CAREFUL_READS;
	reading = false;
	work->want_tick = true;
}

bool
outbox_reader_tick_due(TimestampTz now)
{
	return TimestampDifferenceExceeds(ticked_at, now, POLL_MS);
}

TimestampTz
outbox_reader_next(TimestampTz now)
{
	if (unconfirmed != NULL)
		return TimestampTzPlusMilliseconds(now, CONFIRM_MS);
	if (work->head.partial && !outbox_lane_head_may_read(now))
		return TimestampTzPlusMilliseconds(now, CONFIRM_MS);
	if (work->want_tick || work->head.partial || starving || outbox_dispatch_fetching())
		return Max(now, work->not_before[OUTBOX_STEP_READ]);
	return Max(TimestampTzPlusMilliseconds(ticked_at, POLL_MS), work->not_before[OUTBOX_STEP_READ]);
}

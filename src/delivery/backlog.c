/*
 * The backlog bound: no subscription fills the disk.
 *
 * A full segment of the log stays while a cursor is not past it.  One that is older than outbox.max_backlog_age, or more than outbox.max_backlog_size of them, is given up by
 * the subscription that holds it: its position moves past the segment's newest event, no further, and a row of outbox.gap says what lies between.  Both are written by
 * the same checkpoint, so a crash finds both or neither, and a segment is emptied only after that.
 *
 * What was touched before is an exception and keeps its own life: only what was never tried, or can be read again as if it had not been, is given up.  Nothing is given up unseen: time in
 * which no worker ran does not count, and what outbox.event_retention keeps anyway is held back by nobody.
 *
 * Must never move a position backwards, nor past an event that is younger than the bound.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "backlog.h"
#include "event_id.h"
#include "event_log.h"
#include "lane.h"
#include "restore.h"
#include "ring.h"
#include "settings.h"
#include "statement.h"
#include "work.h"

/* A gap is looked through that far to count what is in it; more is not known. */
#define COUNT_EVENTS 10000
#define COUNT_CHUNKS 32

static const char by_age[] = "max_backlog_age";
static const char by_size[] = "max_backlog_size";

/* What a lane gave up, until it is written. */
typedef struct Gap
{
	int32		subscription;
	OutboxPosition from;		/* pins its ticks … */
	OutboxPosition to;			/* … and so does this */
	const char *reason;
	bool		counted;
	int64		events;
	bool		has_first;
	pg_uuid_t	first;
} Gap;

static OutboxWork *const work = &outbox_work;
static List *gaps = NIL;		/* in TopMemoryContext */

static OutboxStatement insert_outage = {
	"WITH seen AS (SELECT coalesce(pg_catalog.max(c.at), '-infinity') AS at FROM outbox.cursor c WHERE c.epoch = $1),"
	"     joined AS (UPDATE outbox.outage o SET ended = pg_catalog.clock_timestamp() FROM seen s"
	"                 WHERE o.epoch = $1 AND o.ended > s.at - interval '10 s' RETURNING o.ended)"
	" INSERT INTO outbox.outage (epoch, began, ended) SELECT $1, s.at, pg_catalog.clock_timestamp() FROM seen s"
	"  WHERE s.at < pg_catalog.clock_timestamp() - interval '1 s' AND NOT EXISTS (SELECT FROM joined)",
	1, {INT8OID}
};

static OutboxStatement delete_outages = {
	"DELETE FROM outbox.outage o WHERE o.epoch <> $1 OR outbox._running_since(o.ended) > pg_catalog.make_interval(secs => $2)",
	2, {INT8OID, FLOAT8OID}
};

static OutboxStatement running_since = {
	"SELECT pg_catalog.date_part('epoch', outbox._running_since($1))", 1, {TIMESTAMPTZOID}
};

static OutboxStatement insert_gap = {
	"INSERT INTO outbox.gap (subscription, subscription_id, epoch, base, upper, after, until, from_id, to_id, from_time, to_time, events, reason, at)"
	" SELECT s.name, s.id, $2, $3, $4, $5, $6, $7, $8, outbox._event_time($7), outbox._event_time($8), $9, $10, pg_catalog.clock_timestamp()"
	"   FROM outbox.subscription s WHERE s.id = $1",
	10, {INT4OID, INT8OID, PG_SNAPSHOTOID, PG_SNAPSHOTOID, UUIDOID, PG_SNAPSHOTOID, UUIDOID, UUIDOID, INT8OID, TEXTOID}
};

/* ---- time in which nobody delivered ---- */

void
outbox_backlog_started(int64 epoch)
{
	const int	month = 30 * SECS_PER_DAY;
	Datum		values[2];

	values[0] = Int64GetDatum(epoch);
	values[1] = Float8GetDatum(Max(month, Max(outbox_max_backlog_age, outbox_event_retention)));
	outbox_statement_run(&insert_outage, values, NULL);
	outbox_statement_run(&delete_outages, values, NULL);
}

/* For how many seconds workers have been running since then. */
static double
age(TimestampTz at)
{
	Datum		values[] = {TimestampTzGetDatum(at)};
	bool		null;

	outbox_statement_run(&running_since, values, NULL);
	return DatumGetFloat8(outbox_statement_column(0, 1, &null));
}

/* ---- who is past the bound ---- */

/* Where a lane is; false: at the head, with nothing to do, or nowhere yet. */
static bool
find_place(OutboxLane *lane, OutboxPosition *position)
{
	if (!lane->at_head && lane->position.base == NULL)
		return false;
	return outbox_lane_cursor(lane, position);
}

/* The same proof as that of retirement (ring.c). */
static bool
holds(const OutboxPosition *position, const OutboxFullSegment *segment)
{
	if (position->restored != 0)
		return true;
	if (position->base->number >= segment->seal_tick)
		return false;
	return !position->partial || position->upper->number < segment->seal_tick ||
		memcmp(&position->after, &segment->newest, sizeof(pg_uuid_t)) < 0;
}

/* Can a window from this position end with the newest tick? */
static bool
may_end_now(const OutboxLane *lane, const OutboxPosition *position)
{
	uint64		begin = position->restored != 0 ? 0 : position->base->number == 0 ? lane->not_before : position->base->number;

	return outbox_tick_durable(work->newest) && work->newest->number > begin;
}

/*
 * The newest event that a lane at this position must give up; NULL: none.  The segments are in the order of their newest events.  One of which no tick has seen all yet stays.
 * What came with a restored dump is bounded by age alone: no place within it would let a segment go.
 */
static const pg_uuid_t *
find_bound(const OutboxPosition *position, const OutboxFullSegment *segments, const bool *too_old, int n, const char **reason)
{
	const pg_uuid_t *bound = NULL;
	int64		limit = (int64) outbox_max_backlog_size * 1024;
	int64		bytes = 0;

	for (int i = n - 1; i >= 0; i--)
	{
		if (!holds(position, &segments[i]) || !segments[i].expired)
			continue;
		bytes += segments[i].bytes;
		if (bound != NULL || work->newest->number < segments[i].seal_tick)
			continue;
		if (too_old[i])
			*reason = by_age;
		else if (limit > 0 && bytes > limit && position->restored == 0)
			*reason = by_size;
		else
			continue;
		bound = &segments[i].newest;
	}

	/* It has read further in an older window: what that window left out is for the next one. */
	if (bound != NULL && position->restored == 0 && position->partial && memcmp(&position->after, bound, sizeof(pg_uuid_t)) >= 0)
		return NULL;
	return bound;
}

/* ---- moving ---- */

/* The chunk after the last one, which is let go, whatever happens. */
static OutboxChunk *
read_on(OutboxLog *log, const OutboxPosition *position, OutboxTick *upper, OutboxChunk *last)
{
	OutboxChunk *next;

	PG_TRY();
	{
		next = outbox_chunk_read(log, work->epoch, position, upper, true, true, true);
	}
	PG_CATCH();
	{
		if (last != NULL)
			outbox_chunk_unpin(last);
		PG_RE_THROW();
	}
	PG_END_TRY();
	if (last != NULL)
		outbox_chunk_unpin(last);
	return next;
}

/* Counts the events from this position up to `bound` that the lane would have got, as far as that can be found out with little reading.  False: there are more. */
static bool
count_part(OutboxLane *lane, Gap *gap, OutboxLog *log, OutboxPosition position, const pg_uuid_t *bound, uint64 *seen)
{
	OutboxChunk *chunk = NULL;
	bool		whole = false;

	for (int i = 0; i < COUNT_CHUNKS && *seen < COUNT_EVENTS && !whole; i++)
	{
		chunk = read_on(log, &position, gap->to.upper, chunk);
		position = chunk->to;
		whole = !chunk->to.partial;
		for (int j = 0; j < chunk->n; j++)
		{
			const OutboxEvent *event = &chunk->events[j].event;

			if (bound != NULL && memcmp(&event->log_id, bound, sizeof(pg_uuid_t)) > 0)
			{
				whole = true;
				break;
			}
			(*seen)++;
			if (!outbox_subscription_wants(lane->subscription, chunk, j) ||
				outbox_lane_is_settled(lane, chunk, j) ||
				outbox_item_exception(lane->subscription->id, &event->id) != NULL)
				continue;
			if (!gap->has_first)
				gap->first = event->log_id;
			gap->has_first = true;
			gap->events++;
		}
	}
	if (chunk != NULL)
		outbox_chunk_unpin(chunk);
	return whole;
}

/*
 * How many events a gap has for its lane.  Returns how many it has for anyone.  Beside what lies ahead in the lane's window, a gap has what was committed after that window with an id
 * that the lane was past: it would have come with the next one.
 */
static uint64
look_through(OutboxLane *lane, Gap *gap, OutboxLog *log, const pg_uuid_t *bound)
{
	OutboxPosition position = gap->from;
	uint64		seen = 0;
	bool		whole = true;

	position.inside = false;	/* what lies before it in its chunk is no part of the gap */
	if (position.partial && position.restored == 0)
	{
		OutboxPosition late = {.base = position.upper, .upper = position.upper};

		if (position.upper->number < gap->to.upper->number)
			whole = count_part(lane, gap, log, late, &position.after, &seen);
		position.upper = gap->to.upper;
		position.hinted = false;
	}
	gap->counted = count_part(lane, gap, log, position, bound, &seen) && whole;
	return seen;
}

/*
 * Gives up all to `bound`.  What came with a restored dump is older than anything here that can be past the bound, so it goes altogether.
 */
static void
give_up(OutboxLane *lane, OutboxLog *log, const pg_uuid_t *bound, const char *reason)
{
	OutboxPosition from = outbox_lane_position(lane);
	OutboxPosition to = {.base = from.base, .upper = work->newest, .partial = true, .after = *bound};
	Gap			found = {.subscription = lane->subscription->id, .reason = reason, .from = from};
	Gap		   *gap;
	uint64		seen;
	MemoryContext old;

	if (from.restored != 0)
		to = (OutboxPosition) {.restored = from.restored, .base = outbox_tick_everything(), .upper = outbox_tick_everything()};
	found.to = to;
	seen = look_through(lane, &found, log, from.restored != 0 ? NULL : bound);

	/* from here on nothing raises but for want of memory: the ticks were borrowed from the lane, and are pinned before it lets them go */
	old = MemoryContextSwitchTo(TopMemoryContext);
	gap = palloc(sizeof(Gap));
	*gap = found;
	gaps = lappend(gaps, gap);
	MemoryContextSwitchTo(old);
	outbox_tick_pin(from.base);
	outbox_tick_pin(from.upper);
	outbox_tick_pin(to.base);
	outbox_tick_pin(to.upper);
	if (from.restored != 0)
		outbox_restore_done(lane);
	else
		outbox_position_set(&lane->position, &to);
	lane->offset += seen;
	lane->need_settled = true;
	work->moved = true;
}

static void
bound_lane(OutboxLane *lane, OutboxLog *log, const OutboxFullSegment *segments, const bool *too_old, int n)
{
	const pg_uuid_t *bound;
	const char *reason;
	OutboxPosition position;

	if (!find_place(lane, &position) || !may_end_now(lane, &position) ||
		find_bound(&position, segments, too_old, n, &reason) == NULL)
		return;

	/* what was touched becomes an exception, and the rest goes back to the log: then it is nowhere but at its position */
	work->changing = true;
	outbox_lane_shed(lane);
	work->changing = false;
	if (lane->n_outstanding > 0 || lane->at_head)
		return;
	bound = find_bound(&lane->position, segments, too_old, n, &reason);
	if (bound == NULL || !may_end_now(lane, &lane->position))
		return;
	ereport(LOG,
			(errmsg("subscription \"%s\" is too far behind and gives up events that are older than %s", lane->subscription->name,
					timestamptz_to_str(outbox_event_id_time(bound))),
			 errdetail("It is past outbox.%s.", reason),
			 errhint("The table outbox.gap says what it will not get. outbox.replay() sends what is still in the log.")));
	give_up(lane, log, bound, reason);
}

/* Could some lane hold a full segment?  In memory: as a rule nobody does. */
static List *
find_holders(void)
{
	uint64		newest_seal = 0;
	List	   *holders = NIL;
	ListCell   *cell;

	LWLockAcquire(&work->database->lock, LW_SHARED);
	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		if (work->database->segments[i].sealed)
			newest_seal = Max(newest_seal, work->database->segments[i].seal_tick);
	}
	LWLockRelease(&work->database->lock);

	foreach(cell, outbox_lane_all())
	{
		OutboxLane *lane = lfirst(cell);
		OutboxPosition position;

		if (find_place(lane, &position) && (position.restored != 0 || position.base->number < newest_seal))
			holders = lappend(holders, lane);
	}
	return holders;
}

static void
bound_lanes(List *holders)
{
	OutboxFullSegment segments[OUTBOX_SEGMENTS];
	bool		too_old[OUTBOX_SEGMENTS] = {false};
	int			n = outbox_ring_full(segments);
	OutboxLog  *log;
	ListCell   *cell;

	if (n == 0)
		return;
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	for (int i = 0; i < n; i++)
		too_old[i] = segments[i].expired && outbox_max_backlog_age > 0 &&
			age(outbox_event_id_time(&segments[i].newest)) > outbox_max_backlog_age;
	SPI_finish();
	PopActiveSnapshot();

	log = outbox_log_open(true, 0);
	if (log == NULL)
		return;
	PushActiveSnapshot(GetTransactionSnapshot());
	foreach(cell, holders)
		bound_lane(lfirst(cell), log, segments, too_old, n);
	PopActiveSnapshot();
	outbox_log_close(log);

	/* Somebody holds full segments: a head row now and then tells a later worker until when there was one. */
	work->moved = true;
}

void
outbox_backlog_step(void)
{
	List	   *holders;

	if (outbox_max_backlog_age == 0 && outbox_max_backlog_size == 0)
		return;
	holders = find_holders();
	if (holders == NIL || !outbox_work_begin("looking for subscriptions that are too far behind"))
		return;
	bound_lanes(holders);
	outbox_work_commit();
}

/* ---- writing ---- */

static Datum
snapshot_or_null(const OutboxTick *tick, char *null)
{
	*null = tick == NULL || tick->snapshot == NULL ? 'n' : ' ';
	return *null == 'n' ? (Datum) 0 : outbox_snapshot_to_datum(tick->snapshot);
}

static void
write_gap(const Gap *gap)
{
	const OutboxPosition *from = &gap->from;
	char		nulls[] = "          ";
	Datum		values[10];

	values[0] = Int32GetDatum(gap->subscription);
	values[1] = Int64GetDatum(from->restored != 0 ? from->restored : work->epoch);
	values[2] = snapshot_or_null(from->base, &nulls[2]);
	values[3] = snapshot_or_null(from->partial ? from->upper : NULL, &nulls[3]);
	values[4] = UUIDPGetDatum(&from->after);
	nulls[4] = from->partial ? ' ' : 'n';
	values[5] = snapshot_or_null(gap->to.upper, &nulls[5]);
	values[6] = gap->has_first ? UUIDPGetDatum(&gap->first) : UUIDPGetDatum(&from->after);
	nulls[6] = gap->has_first || from->partial ? ' ' : 'n';
	values[7] = UUIDPGetDatum(&gap->to.after);
	nulls[7] = gap->to.partial ? ' ' : 'n';
	values[8] = Int64GetDatum(gap->events);
	nulls[8] = gap->counted ? ' ' : 'n';
	values[9] = CStringGetTextDatum(gap->reason);
	outbox_statement_run(&insert_gap, values, nulls);
}

void
outbox_backlog_write(void)
{
	ListCell   *cell;

	foreach(cell, gaps)
	{
		const Gap  *gap = lfirst(cell);

		if (!gap->counted || gap->events > 0)	/* else nothing of it was for this subscription */
			write_gap(gap);
	}
}

void
outbox_backlog_committed(void)
{
	ListCell   *cell;

	foreach(cell, gaps)
	{
		Gap		   *gap = lfirst(cell);

		outbox_position_clear(&gap->from);
		outbox_position_clear(&gap->to);
		pfree(gap);
	}
	list_free(gaps);
	gaps = NIL;
}

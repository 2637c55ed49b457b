/*
 * Replays.
 *
 * A row of outbox.replay is a range of events that its subscription is to get once more.  It is gone through in the order of ids; what matches becomes an exception (a row of
 * outbox.delivery, due at once), so a replayed event has all that a delivery has: retries, order among the events of its key, dead letters.  Never more than about two rounds of max_in_flight of them
 * are outstanding, and they stand in the lane's queue with everything else: live events wait for few of them, and a million is never a million rows.
 *
 * The rows and the place reached are written by one transaction: a crash neither leaves out nor repeats more than is repeated anyway.
 *
 * Only what the cursor had passed when the replay was taken up is replayed, and is past now: all else comes without it, and nothing comes twice at the same time.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "dispatch.h"
#include "event_log.h"
#include "fault.h"
#include "pattern.h"
#include "replay.h"
#include "settings.h"
#include "statement.h"
#include "work.h"

#define ROUNDS 2				/* of max_in_flight that may be outstanding … */
#define OUTSTANDING_MIN 20		/* … or so many, if that is more … */
#define OUTSTANDING_MAX 500		/* … and never more than these */
#define LOOK_AT_ONCE 5000		/* events that are looked at in one transaction, whether they match or not */
#define STEP_BUDGET_US 20000	/* then it is somebody else's turn */

typedef struct Replay
{
	int64		id;
	int32		subscription;
	TimestampTz created_at;
	pg_uuid_t	place;			/* all up to this one has been looked at */
	pg_uuid_t	until;			/* and this is not part of it */
	char	  **types;			/* NULL: what the subscription wants */
	int			n_types;
	bool		first;			/* of its subscription's; the others wait for its end */
	bool		taken;			/* the cursor that it found is known: */
	OutboxSnapshot *base;
	OutboxSnapshot *upper;		/* with after; NULL: base is all */
	pg_uuid_t	after;
} Replay;

/* What one transaction finds. */
typedef struct Batch
{
	OutboxException *exceptions;
	char	  **keys;
	int			n;
	int			room;
	pg_uuid_t	place;
	bool		over;
	bool		expired;		/* … because it took too long */
	bool		stopped;		/* the next event must wait until what is noted about it has been written */
} Batch;

static OutboxWork *const work = &outbox_work;
static MemoryContext context;	/* of what follows */
static List *replays = NIL;		/* those that are the first of their subscription, or have just been begun; who had its turn goes to the end */

static OutboxStatement select_replays = {
	"SELECT r.id, r.subscription_id, r.created_at, r.place, r.until, r.types, r.taken, r.base, r.upper, r.after, r.first"
	"  FROM (SELECT x.*, pg_catalog.row_number() OVER (PARTITION BY x.subscription_id ORDER BY x.id) = 1 AS first FROM outbox.replay x) r"
	" WHERE r.first OR NOT r.taken ORDER BY r.id",
	0, {0}
};

static OutboxStatement lock_replay = {
	"SELECT 1 FROM outbox.replay r WHERE r.id = $1 FOR UPDATE SKIP LOCKED", 1, {INT8OID}
};

static OutboxStatement take_replay = {
	"UPDATE outbox.replay r SET taken = true, base = $2, upper = $3, after = $4 WHERE r.id = $1",
	4, {INT8OID, PG_SNAPSHOTOID, PG_SNAPSHOTOID, UUIDOID}
};

static OutboxStatement advance_replay = {
	"UPDATE outbox.replay r SET place = $2, replayed = r.replayed + $3 WHERE r.id = $1", 3, {INT8OID, UUIDOID, INT8OID}
};

static OutboxStatement end_replay = {
	"WITH ended AS (DELETE FROM outbox.replay r WHERE r.id = $1 RETURNING *)"
	" INSERT INTO outbox.operation (at, role, action, subscription, selector, count)"
	" SELECT pg_catalog.clock_timestamp(), e.role, $2, e.subscription,"
	"        pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object('subscription', e.subscription, 'since', e.since, 'until', e.until_time, 'types', e.types)), e.replayed + $3"
	"   FROM ended e",
	3, {INT8OID, TEXTOID, INT8OID}
};

/* Dead letters come to life, what was delivered becomes an exception again; all that waits anyway is left alone, and so is what somebody has locked. */
static OutboxStatement make_rows = {
	"WITH wanted AS (SELECT w.event_id, w.key, nullif(w.log_id, w.event_id) AS log_id"
	"                  FROM ROWS FROM (pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($6)) AS w (event_id, key, log_id)),"
	"     dead AS (SELECT d.event_id FROM outbox.delivery d"
	"               WHERE d.subscription_id = $1 AND d.event_id = ANY ($2) AND d.status = 'dead' FOR UPDATE SKIP LOCKED),"
	"     redriven AS (UPDATE outbox.delivery d SET status = 'retrying', attempts = 0, first_attempt_at = NULL, next_attempt_at = $4,"
	"                         reason = NULL, ended_at = NULL, replay = $5"
	"                    FROM dead WHERE d.subscription_id = $1 AND d.event_id = dead.event_id RETURNING coalesce(d.log_id, d.event_id) AS place),"
	"     made AS (INSERT INTO outbox.delivery AS d (subscription_id, event_id, status, key, attempts, next_attempt_at, replay, log_id)"
	"              SELECT $1, w.event_id, 'retrying', w.key, 0, $4, $5, w.log_id FROM wanted w"
	"              ON CONFLICT (subscription_id, event_id) DO NOTHING RETURNING coalesce(d.log_id, d.event_id) AS place)"
	" SELECT r.place FROM redriven r UNION ALL SELECT m.place FROM made m",
	6, {INT4OID, UUIDARRAYOID, TEXTARRAYOID, TIMESTAMPTZOID, INT8OID, UUIDARRAYOID}
};

/* ---- reading them ---- */

static OutboxSnapshot *
snapshot_column(uint64 row, int number)
{
	bool		null;
	Datum		value = outbox_statement_column(row, number, &null);

	return null ? NULL : outbox_snapshot_from_datum(value, 0, 0);
}

static void
load_types(Replay *replay, uint64 row, int number)
{
	bool		null;
	Datum		value = outbox_statement_column(row, number, &null);
	Datum	   *elements;

	if (null)
		return;
	deconstruct_array(DatumGetArrayTypePCopy(value), TEXTOID, -1, false, TYPALIGN_INT, &elements, NULL, &replay->n_types);
	replay->types = palloc(Max(replay->n_types, 1) * sizeof(char *));
	for (int i = 0; i < replay->n_types; i++)
		replay->types[i] = TextDatumGetCString(elements[i]);
}

void
outbox_replay_load(void)
{
	MemoryContext loading;
	MemoryContext old;
	List	   *loaded = NIL;

	outbox_statement_run(&select_replays, NULL, NULL);
	loading = AllocSetContextCreate(CurrentMemoryContext, "outbox replays", ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(loading);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		Replay	   *replay = palloc0(sizeof(Replay));
		bool		null;
		Datum		after;

		replay->id = outbox_statement_int8(i, 1, &null);
		replay->subscription = DatumGetInt32(outbox_statement_column(i, 2, &null));
		replay->created_at = DatumGetTimestampTz(outbox_statement_column(i, 3, &null));
		replay->place = *DatumGetUUIDP(outbox_statement_column(i, 4, &null));
		replay->until = *DatumGetUUIDP(outbox_statement_column(i, 5, &null));
		load_types(replay, i, 6);
		replay->taken = DatumGetBool(outbox_statement_column(i, 7, &null));
		replay->base = snapshot_column(i, 8);
		replay->upper = snapshot_column(i, 9);
		after = outbox_statement_column(i, 10, &null);
		if (!null)
			replay->after = *DatumGetUUIDP(after);
		replay->first = DatumGetBool(outbox_statement_column(i, 11, &null));
		loaded = lappend(loaded, replay);
	}
	MemoryContextSwitchTo(old);
	MemoryContextSetParent(loading, TopMemoryContext);
	if (context != NULL)
		MemoryContextDelete(context);
	context = loading;
	replays = loaded;
}

/* ---- what belongs to one ---- */

static void
cursor_of(OutboxLane *lane, OutboxPosition *position)
{
	if (!outbox_lane_cursor(lane, position))
		*position = work->head;
}

static bool
sees(const OutboxSnapshot *base, const OutboxSnapshot *upper, const pg_uuid_t *after, const OutboxEvent *event)
{
	return outbox_snapshot_sees(base, event->xid) ||
		(upper != NULL && outbox_snapshot_sees(upper, event->xid) && memcmp(&event->log_id, after, sizeof(pg_uuid_t)) <= 0);
}

static bool
is_wanted(const Replay *replay, const OutboxSubscription *subscription, const OutboxEvent *event)
{
	OutboxSubscription today = *subscription;	/* its rules of now, for whatever it has passed */
	OutboxLoggedEvent logged = {.event = *event};
	OutboxChunk alone = {.events = &logged, .n = 1};

	today.n_earlier = 0;
	today.has_start_after = false;
	if (event->unreadable || strcmp(event->type, OUTBOX_PING_TYPE) == 0 || !outbox_subscription_wants(&today, &alone, 0))
		return false;
	if (replay->types == NULL)
		return true;
	for (int i = 0; i < replay->n_types; i++)
	{
		if (outbox_pattern_matches(replay->types[i], event->type))
			return true;
	}
	return false;
}

/* Has the cursor passed it, then and now? */
static bool
is_passed(const Replay *replay, const OutboxPosition *cursor, const OutboxEvent *event)
{
	return sees(replay->base, replay->upper, &replay->after, event) &&
		cursor->restored == 0 &&
		sees(cursor->base->snapshot, cursor->partial ? cursor->upper->snapshot : NULL, &cursor->after, event);
}

/* An exception of this event may be there already, and then it is left alone, unless it is a dead letter that holds back its key. */
static bool
is_underway(const OutboxLane *lane, const OutboxEvent *event)
{
	const OutboxItem *item = outbox_item_exception(lane->subscription->id, &event->id);

	return item != NULL && !item->dead;
}

static void
add_to_batch(Batch *batch, const OutboxLane *lane, const OutboxEvent *event)
{
	OutboxException *exception = &batch->exceptions[batch->n];
	const char *key = lane->subscription->ordered ? event->key : NULL;

	exception->subscription = lane->subscription->id;
	exception->event_id = event->id;
	exception->log_id = event->log_id;
	exception->status = OUTBOX_ROW_RETRYING;
	exception->replay = true;
	exception->keyed = key != NULL;
	if (key != NULL)
		exception->key_hash = hash_bytes_extended((const unsigned char *) key, strlen(key), 0);
	batch->keys[batch->n] = key != NULL ? pstrdup(key) : NULL;
	batch->n++;
}

static void
collect(const Replay *replay, OutboxLane *lane, OutboxLog *log, Batch *batch)
{
	MemoryContext of_event = AllocSetContextCreate(CurrentMemoryContext, "outbox replayed event", ALLOCSET_DEFAULT_SIZES);
	MemoryContext of_batch = CurrentMemoryContext;
	OutboxScan *scan = outbox_log_scan(log, work->epoch, NULL, NULL, &replay->place, NULL, true, true);
	TimestampTz begin_at = GetCurrentTimestamp();
	OutboxPosition cursor;

	cursor_of(lane, &cursor);
	batch->place = replay->place;
	for (int i = 0; i < LOOK_AT_ONCE && batch->n < batch->room; i++)
	{
		OutboxEvent event;

		CHECK_FOR_INTERRUPTS();
		MemoryContextReset(of_event);
		MemoryContextSwitchTo(of_event);
		memset(&event, 0, sizeof(event));
		batch->over = !outbox_log_next(scan, &event) || memcmp(&event.log_id, &replay->until, sizeof(pg_uuid_t)) >= 0;
		MemoryContextSwitchTo(of_batch);
		if (batch->over)
			break;
		if (is_passed(replay, &cursor, &event) && is_wanted(replay, lane->subscription, &event) && !is_underway(lane, &event))
		{
			batch->stopped = outbox_ledger_noted(lane->subscription->id, &event.id);
			if (batch->stopped)
				break;
			add_to_batch(batch, lane, &event);
		}
		batch->place = event.log_id;
		if (GetCurrentTimestamp() - begin_at > STEP_BUDGET_US)
			break;
	}
	outbox_log_end(scan);
	MemoryContextDelete(of_event);
}

/* ---- writing ---- */

/* Ours now, in this transaction?  Gone or locked otherwise: somebody cancels it. */
static bool
lock(const Replay *replay)
{
	Datum		values[] = {Int64GetDatum(replay->id)};

	outbox_statement_run(&lock_replay, values, NULL);
	return SPI_processed == 1;
}

static Datum
snapshot_datum(const OutboxSnapshot *snapshot, char *null)
{
	*null = snapshot == NULL ? 'n' : ' ';
	return snapshot == NULL ? (Datum) 0 : outbox_snapshot_to_datum(snapshot);
}

static void
write_taken(const Replay *replay, const OutboxPosition *cursor)
{
	char		nulls[] = "    ";
	Datum		values[4];

	values[0] = Int64GetDatum(replay->id);
	values[1] = snapshot_datum(cursor->restored != 0 ? NULL : cursor->base->snapshot, &nulls[1]);
	values[2] = snapshot_datum(cursor->restored == 0 && cursor->partial ? cursor->upper->snapshot : NULL, &nulls[2]);
	values[3] = UUIDPGetDatum(&cursor->after);
	nulls[3] = nulls[2];
	outbox_statement_run(&take_replay, values, nulls);
}

static int
compare_exceptions(const void *a, const void *b)
{
	return memcmp(&((const OutboxException *) a)->log_id, &((const OutboxException *) b)->log_id, sizeof(pg_uuid_t));
}

/* Only those stay in the batch that have got their row. */
static void
write_rows(const Replay *replay, Batch *batch, TimestampTz now)
{
	Datum	   *ids = palloc(batch->n * sizeof(Datum));
	Datum	   *places = palloc(batch->n * sizeof(Datum));
	Datum	   *keys = palloc(batch->n * sizeof(Datum));
	bool	   *nulls = palloc0(batch->n * sizeof(bool));
	bool	   *made = palloc0(batch->n * sizeof(bool));
	int			dimensions[] = {batch->n};
	int			bounds[] = {1};
	Datum		values[6];
	int			kept = 0;

	for (int i = 0; i < batch->n; i++)
	{
		ids[i] = UUIDPGetDatum(&batch->exceptions[i].event_id);
		places[i] = UUIDPGetDatum(&batch->exceptions[i].log_id);
		nulls[i] = batch->keys[i] == NULL;
		keys[i] = nulls[i] ? (Datum) 0 : CStringGetTextDatum(batch->keys[i]);
	}
	values[0] = Int32GetDatum(replay->subscription);
	values[1] = PointerGetDatum(construct_array(ids, batch->n, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR));
	values[2] = PointerGetDatum(construct_md_array(keys, nulls, 1, dimensions, bounds, TEXTOID, -1, false, TYPALIGN_INT));
	values[3] = TimestampTzGetDatum(now);
	values[4] = Int64GetDatum(replay->id);
	values[5] = PointerGetDatum(construct_array(places, batch->n, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR));
	outbox_statement_run(&make_rows, values, NULL);

	for (uint64 i = 0; i < SPI_processed; i++)
	{
		OutboxException key = {0};
		OutboxException *found;
		bool		null;

		key.log_id = *DatumGetUUIDP(outbox_statement_column(i, 1, &null));
		found = bsearch(&key, batch->exceptions, batch->n, sizeof(OutboxException), compare_exceptions);
		if (found != NULL)
			made[found - batch->exceptions] = true;
	}
	for (int i = 0; i < batch->n; i++)
	{
		if (made[i])
			batch->exceptions[kept++] = batch->exceptions[i];
	}
	batch->n = kept;
}

static void
write_end(const Replay *replay, const char *action, int n)
{
	Datum		values[] = {Int64GetDatum(replay->id), CStringGetTextDatum(action), Int64GetDatum(n)};

	outbox_statement_run(&end_replay, values, NULL);
}

static void
write_place(const Replay *replay, const Batch *batch)
{
	Datum		values[] = {Int64GetDatum(replay->id), UUIDPGetDatum(&batch->place), Int64GetDatum(batch->n)};

	outbox_statement_run(&advance_replay, values, NULL);
}

/* ---- going on ---- */

/* One that takes longer than anything may be held back for holds the log no more (ring.c), so it cannot go on. */
static bool
is_too_old(const Replay *replay, TimestampTz now)
{
	int64		limit = Max(outbox_max_backlog_age, outbox_event_retention);

	return outbox_max_backlog_age > 0 && now - replay->created_at > limit * USECS_PER_SEC;
}

static bool
is_placed(const OutboxLane *lane)
{
	return lane->at_head || lane->position.base != NULL;
}

/* How many more of its events may wait to be sent; 0 until there is room for a good few. */
static int
room_for(const OutboxLane *lane)
{
	const OutboxSubscription *subscription = lane->subscription;
	int64		round = (int64) subscription->max_in_flight * (subscription->format == OUTBOX_FORMAT_BATCH ? subscription->batch_size : 1);
	int			most = (int) Min(Max(ROUNDS * round, OUTSTANDING_MIN), OUTSTANDING_MAX);

	if (!outbox_lane_may_send(lane) || lane->n_replayed > most / 2)
		return 0;
	return Max(Min(most - lane->n_replayed, subscription->max_blocked - lane->n_rows), 0);
}

/* Is there something to do for it now? */
static bool
is_ready(const Replay *replay, TimestampTz now)
{
	OutboxLane *lane = outbox_lane_find(replay->subscription);

	if (lane == NULL || !is_placed(lane))
		return false;
	return !replay->taken || (replay->first && (is_too_old(replay, now) || room_for(lane) > 0));
}

/* It outlives the transaction. */
static Batch *
make_batch(int room)
{
	Batch	   *batch = MemoryContextAllocZero(work->context, sizeof(Batch));

	batch->room = room;
	batch->exceptions = MemoryContextAllocZero(work->context, room * sizeof(OutboxException));
	batch->keys = MemoryContextAllocZero(work->context, room * sizeof(char *));
	return batch;
}

/* A replay that was just begun keeps the cursor that it finds: what lies ahead of that comes anyway.  False: not now. */
static bool
take(Replay *replay, const OutboxPosition *cursor)
{
	bool		ours;

	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	ours = lock(replay);
	if (ours)
		write_taken(replay, cursor);
	SPI_finish();
	PopActiveSnapshot();
	return ours;
}

static OutboxSnapshot *
copy_snapshot(const OutboxSnapshot *snapshot)
{
	Size		size = snapshot == NULL ? 0 : offsetof(OutboxSnapshot, xip) + snapshot->nxip * sizeof(uint64);

	return snapshot == NULL ? NULL : memcpy(MemoryContextAlloc(context, size), snapshot, size);
}

/* And after the transaction. */
static void
was_taken(Replay *replay, const OutboxPosition *cursor)
{
	work->changing = true;
	replay->taken = true;
	if (cursor->restored == 0)
	{
		replay->base = copy_snapshot(cursor->base->snapshot);
		if (cursor->partial)
			replay->upper = copy_snapshot(cursor->upper->snapshot);
		replay->after = cursor->after;
	}
	work->changing = false;
}

/* The next few.  False: not now. */
static bool
go_on(const Replay *replay, OutboxLane *lane, Batch *batch, TimestampTz now)
{
	OutboxLog  *log = outbox_log_open(true, 0);
	bool		ours;

	if (log == NULL)
		return false;
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	ours = lock(replay);
	if (ours)
	{
		if (is_too_old(replay, now))
			batch->over = batch->expired = true;
		else
			collect(replay, lane, log, batch);
		if (batch->n > 0)
			write_rows(replay, batch, now);
		if (batch->over)
			write_end(replay, batch->expired ? "replay_expired" : "replay_done", batch->n);
		else
			write_place(replay, batch);
	}
	SPI_finish();
	PopActiveSnapshot();
	outbox_log_close(log);
	return ours;
}

/* After the transaction: the rows become items, and the place is where it is. */
static void
went_on(Replay *replay, const Batch *batch)
{
	work->changing = true;
	outbox_dispatch_replayed(batch->exceptions, batch->n);
	work->changing = false;
	replay->place = batch->place;
	if (batch->over)
	{
		replays = list_delete_ptr(replays, replay);
		work->want_reload = true;	/* the subscription's next one */
	}
}

static void
one_step(Replay *replay, TimestampTz now)
{
	OutboxLane *lane = outbox_lane_find(replay->subscription);
	bool		done;

	if (!outbox_work_begin("replaying events"))
		return;
	if (!replay->taken)
	{
		OutboxPosition cursor;

		cursor_of(lane, &cursor);
		done = take(replay, &cursor);
		outbox_work_commit();
		if (done)
			was_taken(replay, &cursor);
	}
	else
	{
		Batch	   *batch = make_batch(Max(room_for(lane), 1));

		done = go_on(replay, lane, batch, now);
		OUTBOX_FAULT("replay-before-commit");
		outbox_work_commit();
		OUTBOX_FAULT("replay-after-commit");
		if (done)
			went_on(replay, batch);
		done = done && !batch->stopped;
	}
	if (!done)
		outbox_work_pause(OUTBOX_BUSY_MS);
}

void
outbox_replay_step(TimestampTz now)
{
	TimestampTz begin_at = now;
	int			n = list_length(replays);

	for (int i = 0; i < n && replays != NIL && outbox_work_step(OUTBOX_STEP_REPLAY, now); i++)
	{
		Replay	   *replay = linitial(replays);
		MemoryContext old;

		/* to the end first: if this raises, the others come first */
		work->changing = true;
		old = MemoryContextSwitchTo(context);
		replays = lappend(list_delete_first(replays), replay);
		MemoryContextSwitchTo(old);
		work->changing = false;
		if (!is_ready(replay, now))
			continue;
		one_step(replay, now);
		if (GetCurrentTimestamp() - begin_at > STEP_BUDGET_US)
			break;
	}
}

TimestampTz
outbox_replay_next(void)
{
	TimestampTz now;
	ListCell   *cell;

	if (replays == NIL)
		return DT_NOEND;
	now = GetCurrentTimestamp();
	foreach(cell, replays)
	{
		if (is_ready(lfirst(cell), now))
			return Max(now, work->not_before[OUTBOX_STEP_REPLAY]);
	}
	return DT_NOEND;
}

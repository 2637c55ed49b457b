/*
 * The ring: where the log begins after a server start, which segment is current, and when one may be emptied.
 *
 * Rotation publishes an empty segment as the current one.  Sealing establishes that nobody writes, or will write, to one that is no longer
 * current: a ShareLock on it was granted.  Retirement empties a sealed one, and only on proof: with the segment locked against everyone, a new snapshot
 * shows that every subscription's committed cursor is past it, and that retention is over.  Nothing about the ring is stored: what shared memory forgets in a
 * restart is found again from the tables.
 *
 * Whoever rotates or retires holds one lock until the end of the transaction, so that a segment found empty is one whose TRUNCATE has
 * committed.  Shared memory is changed only by rotation and sealing, which are true at once and stay true if the transaction fails.
 *
 * Must never make a producer wait, nor wait itself: every lock is conditional, and what is busy now is done in a later round.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "bell.h"
#include "catalog/dependency.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "event_id.h"
#include "event_log.h"
#include "executor/spi.h"
#include "expiry.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "ring.h"
#include "segment.h"
#include "settings.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"
#include "vault.h"

/* Sub-ids of the extension object, as lock tags */
#define LOCK_RING	1			/* rotation, sealing, retirement */
#define LOCK_FLOOR	2			/* the first use after a server start */

#define ATTEMPT_PARTS 4

/* Rows that one round deletes of a kind; the rest waits for the next rounds. */
#define DELETE_AT_ONCE "1000"
#define RENEW_AT_ONCE 500

/* Microseconds for each kind of row that expires by time: what maintenance takes from a worker's deliveries, and from a call's time. */
#define WORKER_BUDGET 10000
#define CALLER_BUDGET 1000000

/* Rows are looked for that often, and when a segment was retired; milliseconds.  A worker's other rounds have only segments in mind. */
#define THOROUGH_INTERVAL 20000

/* Tells the trigger on the segments that it is retirement that truncates. */
static bool retiring = false;

/* ---- the floor ---- */

/*
 * Raises *max to the largest value of a bigint column in any row version of our epoch: also of rows that are not committed, because a prepared
 * transaction may yet commit them.
 */
static void
raise_to_column(const OutboxCatalog *catalog, const char *table, const char *column, const char *epoch_column, uint64 *max)
{
	Relation	relation = table_open(get_relname_relid(table, catalog->schema), AccessShareLock);
	AttrNumber	value_number = get_attnum(RelationGetRelid(relation), column);
	AttrNumber	epoch_number = get_attnum(RelationGetRelid(relation), epoch_column);
	TupleTableSlot *slot = table_slot_create(relation, NULL);
	TableScanDesc scan = table_beginscan(relation, SnapshotAny, 0, NULL);

	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		bool		value_null;
		bool		epoch_null;
		Datum		value = slot_getattr(slot, value_number, &value_null);
		Datum		epoch = slot_getattr(slot, epoch_number, &epoch_null);

		CHECK_FOR_INTERRUPTS();
		if (!value_null && !epoch_null && DatumGetInt64(epoch) == catalog->epoch)
			*max = Max(*max, (uint64) DatumGetInt64(value));
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	table_close(relation, AccessShareLock);
}

/*
 * The clock must be past every id there is and past every snapshot that is stored, for the ids that a stored snapshot has not seen are looked for above its
 * clock; both can be ahead of a system clock that was set back.  The tick counter must be past every stored tick before anything is
 * sealed: a cursor must not seem to be past a seal that is younger than it.
 */
void
outbox_log_floor(OutboxDatabase *database)
{
	OutboxCatalog catalog;
	uint64		clock = outbox_event_id_clock_at(GetCurrentTimestamp());
	uint64		tick = 0;
	uint64		newest = 0;
	uint32		current = 0;

	if (pg_atomic_read_u32(&database->current) != OUTBOX_NO_SEGMENT)
		return;
	catalog = *outbox_catalog_required();
	LockDatabaseObject(ExtensionRelationId, catalog.extension, LOCK_FLOOR, ExclusiveLock);

	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		Relation	heap = table_open(catalog.segments[i], AccessShareLock);
		pg_uuid_t	id;

		if (outbox_segment_edge(heap, BackwardScanDirection, true, &id) && outbox_event_id_clock(&id) >= newest)
		{
			newest = outbox_event_id_clock(&id);
			current = i;
		}
		table_close(heap, AccessShareLock);
	}
	clock = Max(clock, newest);

	for (int i = 0; i < 2; i++)
	{
		const char *table = i == 0 ? "tick_0" : "tick_1";

		raise_to_column(&catalog, table, "clock", "epoch", &clock);
		raise_to_column(&catalog, table, "tick", "epoch", &tick);
	}
	raise_to_column(&catalog, "subscription", "start_clock", "start_epoch", &clock);
	raise_to_column(&catalog, "subscription_match", "until_clock", "epoch", &clock);

	if (pg_atomic_read_u32(&database->current) == OUTBOX_NO_SEGMENT)
	{
		outbox_event_id_floor(&database->clock, clock);
		outbox_event_id_floor(&database->tick, tick);
		pg_atomic_write_u32(&database->current, current);
	}
	UnlockDatabaseObject(ExtensionRelationId, catalog.extension, LOCK_FLOOR, ExclusiveLock);
}

/* ---- a round ---- */

typedef struct Round
{
	OutboxCatalog catalog;
	OutboxDatabase *database;
	TimestampTz now;
	bool		thorough;		/* also what takes reading whole tables */
	int64		budget;			/* microseconds, for rows that expire by time */
	MemoryContext context;		/* of the list */
	List	   *done;
} Round;

static OutboxMaintenance *
report(Round *round, const char *action, int segment, int64 count, const char *detail)
{
	MemoryContext old = MemoryContextSwitchTo(round->context);
	OutboxMaintenance *entry = palloc(sizeof(OutboxMaintenance));

	entry->action = action;
	entry->segment = segment;
	entry->count = count;
	entry->detail = detail != NULL ? pstrdup(detail) : NULL;
	entry->more = false;
	round->done = lappend(round->done, entry);
	MemoryContextSwitchTo(old);
	return entry;
}

static bool
older_than(Round *round, TimestampTz at, int seconds)
{
	return at <= round->now - seconds * USECS_PER_SEC;
}

/* A table in AccessShare mode, if that can be had at once. */
static Relation
open_at_once(Oid oid)
{
	return ConditionalLockRelationOid(oid, AccessShareLock) ? table_open(oid, NoLock) : NULL;
}

static int64
main_fork_bytes(Relation relation)
{
	return (int64) RelationGetNumberOfBlocks(relation) * BLCKSZ;
}

/*
 * Of a table that is open: with its TOAST table and the indexes of both, as far as they can be locked at once.  (pg_total_relation_size() would wait for them.)
 */
static int64
table_bytes(Relation table)
{
	int64		bytes = main_fork_bytes(table);
	Oid			toast = table->rd_rel->reltoastrelid;
	List	   *indexes = RelationGetIndexList(table);
	ListCell   *cell;

	foreach(cell, indexes)
	{
		Relation	index;

		if (!ConditionalLockRelationOid(lfirst_oid(cell), AccessShareLock))
			continue;
		index = index_open(lfirst_oid(cell), NoLock);
		bytes += main_fork_bytes(index);
		index_close(index, AccessShareLock);
	}
	list_free(indexes);
	if (OidIsValid(toast))
	{
		Relation	relation = open_at_once(toast);

		if (relation != NULL)
		{
			bytes += table_bytes(relation);
			table_close(relation, AccessShareLock);
		}
	}
	return bytes;
}

static char *
quoted_name(Relation relation)
{
	return quote_qualified_identifier(get_namespace_name(RelationGetNamespace(relation)), RelationGetRelationName(relation));
}

/* In a new snapshot; returns the number of rows. */
static uint64
execute(const char *statement, int n, Oid *types, Datum *values)
{
	int			result = SPI_execute_with_args(statement, n, types, values, NULL, false, 0);

	if (result < 0)
		elog(ERROR, "could not execute \"%s\": %s", statement, SPI_result_code_string(result));
	return SPI_processed;
}

/* ---- emptying a table ---- */

/* Takes the lock and adds it to the list of those taken, at the front. */
static bool
lock_at_once(Oid relation, List **locks)
{
	if (!ConditionalLockRelationOid(relation, AccessExclusiveLock))
		return false;
	*locks = lcons_oid(relation, *locks);
	return true;
}

static bool
lock_table(Oid table, List **locks)
{
	Relation	relation;
	List	   *indexes;
	Oid			toast;
	ListCell   *cell;
	bool		locked;

	if (!lock_at_once(table, locks))
		return false;
	relation = table_open(table, NoLock);
	indexes = RelationGetIndexList(relation);
	toast = relation->rd_rel->reltoastrelid;
	table_close(relation, NoLock);

	locked = !OidIsValid(toast) || lock_table(toast, locks);
	foreach(cell, indexes)
		locked = locked && lock_at_once(lfirst_oid(cell), locks);
	list_free(indexes);
	return locked;
}

static void
unlock_all(List *locks)
{
	ListCell   *cell;

	foreach(cell, locks)
		UnlockRelationOid(lfirst_oid(cell), AccessExclusiveLock);
	list_free(locks);
}

/*
 * Locks whatever TRUNCATE would wait for, all or nothing: the table, its TOAST table, and the indexes of both.  False if something is busy.
 */
static bool
lock_for_truncate(Oid table, List **locks)
{
	*locks = NIL;
	if (lock_table(table, locks))
		return true;
	unlock_all(*locks);
	return false;
}

static void
truncate_table(const char *name)
{
	retiring = true;
	PG_TRY();
	{
		execute(psprintf("TRUNCATE ONLY %s", name), 0, NULL, NULL);
	}
	PG_FINALLY();
	{
		retiring = false;
	}
	PG_END_TRY();
}

bool
outbox_ring_truncate(const Oid *tables, int n)
{
	List	   *all = NIL;
	int			locked = 0;

	while (locked < n)
	{
		List	   *locks;

		if (!lock_for_truncate(tables[locked], &locks))
			break;
		all = list_concat(all, locks);
		locked++;
	}
	if (locked < n)
	{
		unlock_all(all);
		return false;
	}
	SPI_connect();
	for (int i = 0; i < n; i++)
	{
		Relation	relation = table_open(tables[i], NoLock);
		const char *name = quoted_name(relation);

		table_close(relation, NoLock);
		truncate_table(name);
	}
	SPI_finish();
	return true;
}

/* ---- rotation ---- */

static bool
rotation_due(Round *round, Relation heap)
{
	pg_uuid_t	first;
	int			age = outbox_segment_age > 0 ? outbox_segment_age : outbox_event_retention / 12;

	if (RelationGetNumberOfBlocks(heap) == 0)
		return false;
	if (table_bytes(heap) > (int64) outbox_segment_size * 1024)
		return true;
	return outbox_segment_edge(heap, ForwardScanDirection, false, &first) &&
		older_than(round, outbox_event_id_time(&first), age);
}

/* The next empty segment after the current one; -1 if there is none. */
static int
find_empty(Round *round, uint32 current)
{
	for (int i = 1; i < OUTBOX_SEGMENTS; i++)
	{
		int			candidate = (current + i) % OUTBOX_SEGMENTS;
		Relation	heap = open_at_once(round->catalog.segments[candidate]);
		bool		empty;

		if (heap == NULL)
			continue;
		empty = RelationGetNumberOfBlocks(heap) == 0;
		table_close(heap, AccessShareLock);
		if (empty)
			return candidate;
	}
	return -1;
}

static void
rotate(Round *round)
{
	OutboxDatabase *database = round->database;
	uint32		current = pg_atomic_read_u32(&database->current);
	Relation	heap;
	int64		bytes;
	int			next;

	if (current == OUTBOX_NO_SEGMENT)	/* reset since the round began: the next one finds the floor again */
		return;
	heap = open_at_once(round->catalog.segments[current]);
	if (heap == NULL)
		return;
	if (!rotation_due(round, heap))
	{
		table_close(heap, AccessShareLock);
		return;
	}
	bytes = table_bytes(heap);
	table_close(heap, AccessShareLock);

	next = find_empty(round, current);
	if (next < 0)
	{
		report(round, "full", current, bytes, "no segment is empty: the current one grows");
		return;
	}

	/* Unsealed first: who reads only unsealed segments must find it before a producer does. */
	LWLockAcquire(&database->lock, LW_EXCLUSIVE);
	database->segments[next].sealed = false;
	database->rotated_at = round->now;
	LWLockRelease(&database->lock);
	pg_atomic_write_u32(&database->current, next);
	pg_memory_barrier();
	report(round, "rotated", current, bytes, psprintf("segment %d is current now", next));
}

/* ---- sealing ---- */

static bool
is_sealed(OutboxDatabase *database, int segment, uint64 *seal_tick)
{
	bool		sealed;

	LWLockAcquire(&database->lock, LW_SHARED);
	sealed = database->segments[segment].sealed;
	*seal_tick = database->segments[segment].seal_tick;
	LWLockRelease(&database->lock);
	return sealed;
}

/* Has it a writer?  Asked of a segment that is not current, so the answer stays no.  Says also whether it is empty. */
static bool
has_writer(Oid segment, bool *empty)
{
	Relation	heap;

	if (!ConditionalLockRelationOid(segment, ShareLock))
		return true;
	heap = table_open(segment, NoLock);
	*empty = RelationGetNumberOfBlocks(heap) == 0;
	table_close(heap, ShareLock);
	return false;
}

/*
 * Seals all that have no writer, empty ones too: a tick need not open them.  The counter is read after the lock was granted, so the tick after it sees
 * all that was ever written.
 */
static void
seal(Round *round)
{
	OutboxDatabase *database = round->database;
	uint32		current = pg_atomic_read_u32(&database->current);

	if (current == OUTBOX_NO_SEGMENT)
		return;
	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		uint64		seal_tick;
		bool		empty;

		if (i == current || is_sealed(database, i, &seal_tick) || has_writer(round->catalog.segments[i], &empty))
			continue;

		seal_tick = pg_atomic_read_u64(&database->tick) + 1;
		LWLockAcquire(&database->lock, LW_EXCLUSIVE);
		database->segments[i].sealed = true;
		database->segments[i].seal_tick = seal_tick;
		LWLockRelease(&database->lock);
		if (!empty)
		{
			report(round, "sealed", i, 0, NULL);
			outbox_bell_note(database, OUTBOX_RING_EVENTS);
		}
	}
}

/* ---- retirement ---- */

/*
 * What holds a segment, in words; NULL if nothing does.  $1: epoch, $2: the tick after sealing, $3: the newest id in it, $4: the oldest.  The head counts like
 * a subscription, if there are any: it is where they go on from.  A log that was never ticked is never emptied.  A replay holds what it has not looked at yet,
 * but not for longer than a subscription could.
 */
static const char what_holds[] =
"WITH latest AS (SELECT DISTINCT ON (c.subscription_id) c.subscription_id, c.at_head, c.base, c.tick, c.after"
"                  FROM outbox.cursor AS c WHERE c.epoch = $1 ORDER BY c.subscription_id, c.seq DESC),"
"     head AS (SELECT l.base, l.tick, l.after FROM latest AS l WHERE l.subscription_id = 0),"
"     place AS (SELECT 'subscription ' || s.name AS who,"
"                      CASE WHEN l.at_head THEN h.base ELSE l.base END AS base,"
"                      CASE WHEN l.at_head THEN h.tick ELSE l.tick END AS tick,"
"                      CASE WHEN l.at_head THEN h.after ELSE l.after END AS after"
"                 FROM outbox.subscription AS s LEFT JOIN latest AS l ON l.subscription_id = s.id LEFT JOIN head AS h ON true"
"               UNION ALL"
"               SELECT 'the head', h.base, h.tick, h.after FROM head AS h WHERE EXISTS (SELECT FROM outbox.subscription))"
" SELECT 'a log that was never read' WHERE NOT EXISTS (SELECT FROM head)"
" UNION ALL"
" SELECT p.who FROM place AS p WHERE NOT coalesce(p.base >= $2 OR (p.tick >= $2 AND p.after >= $3), false)"
" UNION ALL"
" SELECT 'a replay for subscription ' || r.subscription FROM outbox.replay AS r"
"  WHERE r.place < $3 AND r.until > $4 AND coalesce(r.created_at >= now() - outbox._max_backlog_age(), true)"
" LIMIT 1";

static bool
is_held(Round *round, uint64 seal_tick, const pg_uuid_t *newest, const pg_uuid_t *oldest)
{
	Oid			types[] = {INT8OID, INT8OID, UUIDOID, UUIDOID};
	Datum		values[] = {Int64GetDatum(round->catalog.epoch), Int64GetDatum((int64) seal_tick), UUIDPGetDatum(newest), UUIDPGetDatum(oldest)};

	return execute(what_holds, 4, types, values) > 0;
}

/* Is it full, read by all, and too old? */
static bool
is_over(Round *round, Relation heap, uint64 seal_tick)
{
	pg_uuid_t	newest;
	pg_uuid_t	oldest;

	return RelationGetNumberOfBlocks(heap) > 0 &&
		outbox_segment_edge(heap, BackwardScanDirection, false, &newest) &&
		outbox_segment_edge(heap, ForwardScanDirection, false, &oldest) &&
		older_than(round, outbox_event_id_time(&newest), outbox_event_retention) &&
		!is_held(round, seal_tick, &newest, &oldest);
}

/* Copies the events that a delivery still points to. */
static void
keep_events(Round *round, int segment, const char *name)
{
	static const char columns[] = "id, xid, epoch, created_at, type, key, tenant, payload, body, content_type, headers, traceparent, scheduled_id";
	uint64		kept = execute(psprintf("INSERT INTO outbox.kept_event (%s) SELECT %s FROM ONLY %s AS e"
										" WHERE EXISTS (SELECT FROM outbox.delivery AS d WHERE d.event_id = coalesce(e.scheduled_id, e.id)) ON CONFLICT DO NOTHING",
										columns, columns, name), 0, NULL, NULL);

	if (kept > 0)
		report(round, "kept", segment, kept, "events that deliveries still point to");
}

/*
 * The proof is made twice: without locks, so as not to disturb anyone in vain, and again when nobody can be in the segment.
 */
static void
retire(Round *round, int segment)
{
	Oid			oid = round->catalog.segments[segment];
	uint64		seal_tick;
	Relation	heap;
	List	   *locks;
	bool		over;

	if (!is_sealed(round->database, segment, &seal_tick))
		return;
	heap = open_at_once(oid);
	if (heap == NULL)
		return;
	over = is_over(round, heap, seal_tick);
	table_close(heap, AccessShareLock);
	if (!over)
		return;

	if (!lock_for_truncate(oid, &locks))
	{
		report(round, "busy", segment, 0, "the segment is in use");
		return;
	}
	heap = table_open(oid, NoLock);
	over = is_over(round, heap, seal_tick);
	if (over)
	{
		char	   *name = quoted_name(heap);
		int64		bytes = table_bytes(heap);

		table_close(heap, NoLock);
		keep_events(round, segment, name);
		truncate_table(name);
		report(round, "retired", segment, bytes, NULL);
		round->thorough = true; /* what it held back can go now */
	}
	else
	{
		table_close(heap, NoLock);
		unlock_all(locks);
	}
}

static int
compare_full(const void *a, const void *b)
{
	return memcmp(&((const OutboxFullSegment *) a)->newest, &((const OutboxFullSegment *) b)->newest, sizeof(pg_uuid_t));
}

int
outbox_ring_full(OutboxFullSegment segments[OUTBOX_SEGMENTS])
{
	OutboxCatalog catalog = *outbox_catalog_required();
	OutboxDatabase *database = outbox_bell_database(catalog.extension);
	uint32		current = pg_atomic_read_u32(&database->current);
	TimestampTz expired_at = GetCurrentTimestamp() - outbox_event_retention * USECS_PER_SEC;
	int			n = 0;

	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		OutboxFullSegment *segment = &segments[n];
		Relation	heap;

		if (i == current || !is_sealed(database, i, &segment->seal_tick) || (heap = open_at_once(catalog.segments[i])) == NULL)
			continue;
		if (RelationGetNumberOfBlocks(heap) > 0 && outbox_segment_edge(heap, BackwardScanDirection, false, &segment->newest))
		{
			segment->bytes = table_bytes(heap);
			segment->expired = outbox_event_id_time(&segment->newest) <= expired_at;
			n++;
		}
		table_close(heap, AccessShareLock);
	}
	qsort(segments, n, sizeof(OutboxFullSegment), compare_full);
	return n;
}

/* ---- what else has expired, or is to be renewed ---- */

/* Rows that somebody has locked are left for another time. */
static const char delete_ownerless[] =
"DELETE FROM outbox.delivery WHERE ctid = ANY (ARRAY(SELECT d.ctid FROM outbox.delivery AS d"
" WHERE NOT EXISTS (SELECT FROM outbox.subscription AS s WHERE s.id = d.subscription_id) LIMIT " DELETE_AT_ONCE " FOR UPDATE SKIP LOCKED))";

/* While its event is in the log the row must stay: without it the event would seem to be delivered. */
static const char delete_expired[] =
"DELETE FROM outbox.delivery WHERE ctid = ANY (ARRAY(SELECT d.ctid FROM outbox.delivery AS d"
" WHERE d.status IN ('dead', 'discarded') AND d.ended_at <= $1 AND NOT EXISTS (SELECT FROM outbox.event AS e WHERE e.id = coalesce(d.log_id, d.event_id))"
" LIMIT " DELETE_AT_ONCE " FOR UPDATE SKIP LOCKED))";

/* While one of its events can be asked about the gap must stay, likewise. */
static const char delete_gaps[] =
"DELETE FROM outbox.gap WHERE ctid = ANY (ARRAY(SELECT g.ctid FROM outbox.gap AS g"
" WHERE g.at <= $1 AND NOT EXISTS (SELECT FROM outbox.event AS e WHERE g.to_id IS NULL OR e.id <= g.to_id)"
" AND NOT EXISTS (SELECT FROM outbox.kept_event AS k WHERE g.to_id IS NULL OR k.id <= g.to_id) LIMIT " DELETE_AT_ONCE " FOR UPDATE SKIP LOCKED))";

static const char delete_kept[] =
"DELETE FROM outbox.kept_event WHERE ctid = ANY (ARRAY(SELECT k.ctid FROM outbox.kept_event AS k"
" WHERE NOT EXISTS (SELECT FROM outbox.delivery AS d WHERE d.event_id = coalesce(k.scheduled_id, k.id)) LIMIT " DELETE_AT_ONCE " FOR UPDATE SKIP LOCKED))";

/* Earlier matching rules that apply to no event of the log any more. */
static const char delete_matches[] =
"DELETE FROM outbox.subscription_match WHERE ctid = ANY (ARRAY(SELECT m.ctid FROM outbox.subscription_match AS m"
" WHERE NOT EXISTS (SELECT FROM outbox.event AS e WHERE e.id < outbox._lowest_id(m.until_clock + 1)) LIMIT " DELETE_AT_ONCE " FOR UPDATE SKIP LOCKED))";

/* Secrets that have stopped signing. */
static const char delete_secrets[] =
"DELETE FROM outbox.secret WHERE ctid = ANY (ARRAY(SELECT k.ctid FROM outbox.secret AS k"
" WHERE k.expires_at <= pg_catalog.clock_timestamp() LIMIT " DELETE_AT_ONCE " FOR UPDATE SKIP LOCKED))";

/* Keys of dedup that count no more. */
static const char expire_dedup[] =
"DELETE FROM outbox.dedup WHERE ctid = ANY (ARRAY(SELECT d.ctid FROM outbox.dedup AS d"
" WHERE d.at <= $1 ORDER BY d.at LIMIT " DELETE_AT_ONCE " FOR UPDATE SKIP LOCKED))";

/* Scheduled events that were cancelled are remembered as long as others stay readable … */
static const char expire_cancelled[] =
"DELETE FROM outbox.unscheduled WHERE ctid = ANY (ARRAY(SELECT u.ctid FROM outbox.unscheduled AS u"
" WHERE u.log_id IS NULL AND u.at <= $1 ORDER BY u.at LIMIT " DELETE_AT_ONCE " FOR UPDATE SKIP LOCKED))";

/* … and those that were moved, as long as they are there. */
static const char expire_moved[] =
"DELETE FROM outbox.unscheduled WHERE ctid = ANY (ARRAY(SELECT u.ctid FROM outbox.unscheduled AS u"
" WHERE u.log_id < coalesce((SELECT e.id FROM outbox.event AS e ORDER BY e.id LIMIT 1), 'ffffffff-ffff-ffff-ffff-ffffffffffff')"
" AND NOT EXISTS (SELECT FROM outbox.kept_event AS k WHERE k.id = u.log_id)"
" ORDER BY u.log_id LIMIT " DELETE_AT_ONCE " FOR UPDATE SKIP LOCKED))";

/*
 * Can the log be read without waiting?  A query of it locks every segment and every index.  The locks stay until the transaction ends, as the query's would.
 */
static bool
lock_log_at_once(Round *round)
{
	for (int i = -1; i < OUTBOX_SEGMENTS; i++)
	{
		Relation	heap = open_at_once(i < 0 ? get_relname_relid("event", round->catalog.schema) : round->catalog.segments[i]);
		List	   *indexes;
		ListCell   *cell;
		bool		locked = true;

		if (heap == NULL)
			return false;
		indexes = RelationGetIndexList(heap);
		table_close(heap, NoLock);
		foreach(cell, indexes)
			locked = locked && ConditionalLockRelationOid(lfirst_oid(cell), AccessShareLock);
		list_free(indexes);
		if (!locked)
			return false;
	}
	return true;
}

static void
delete_rows(Round *round, const char *statement, const char *what)
{
	Oid			types[] = {TIMESTAMPTZOID};
	Datum		values[] = {TimestampTzGetDatum(round->now - outbox_dead_letter_retention * USECS_PER_SEC)};
	uint64		deleted = execute(statement, statement == delete_expired || statement == delete_gaps ? 1 : 0, types, values);

	if (deleted > 0)
		report(round, "deleted", -1, deleted, what);
}

static void
renew_secrets(Round *round)
{
	uint64		renewed = outbox_vault_renew(RENEW_AT_ONCE);

	if (renewed > 0)
		report(round, "encrypted", -1, renewed, "secrets and headers that were plain, or under an older key");
}

/* In small batches, as many as the budget allows. */
static void
expire_rows(Round *round, const char *statement, int seconds, const char *what)
{
	Oid			types[] = {TIMESTAMPTZOID};
	Datum		values[] = {TimestampTzGetDatum(round->now - seconds * USECS_PER_SEC)};
	TimestampTz began_at = GetCurrentTimestamp();
	uint64		expired = 0;
	uint64		batch;
	bool		more;

	do
	{
		CHECK_FOR_INTERRUPTS();
		batch = execute(statement, statement == expire_moved ? 0 : 1, types, values);
		expired += batch;
		more = batch == atoi(DELETE_AT_ONCE);
	} while (more && GetCurrentTimestamp() - began_at < round->budget);
	if (expired > 0)
		report(round, "expired", -1, expired, what)->more = more;
}

/* Time in slices of half the retention: the part after the current one was last written at least one retention ago. */
int
outbox_ring_attempt_part(TimestampTz at)
{
	int64		slice = Max(outbox_attempt_retention / 2, 1);

	return at / USECS_PER_SEC / slice % ATTEMPT_PARTS;
}

/*
 * When the part was last written to: as a rule its last page tells, since it is only appended to.  False if there is no row at all.
 */
static bool
newest_attempt(Relation part, TimestampTz *at)
{
	BlockNumber last = RelationGetNumberOfBlocks(part) - 1;

	for (int try = 0; try < 2; try++)
	{
		bool		isnull;
		Datum		value;

		execute(psprintf("SELECT pg_catalog.max(a.at) FROM ONLY %s AS a WHERE a.ctid >= '(%u,0)'", quoted_name(part), try == 0 ? last : 0), 0, NULL, NULL);
		value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
		*at = DatumGetTimestampTz(value);
		if (!isnull)
			return true;
	}
	return false;
}

/* Looks at the rows' own times too: the setting may have changed, and with it which part is whose. */
static bool
attempts_expired(Round *round, Relation part)
{
	TimestampTz newest;

	if (RelationGetNumberOfBlocks(part) == 0)
		return false;
	return !newest_attempt(part, &newest) || older_than(round, newest, outbox_attempt_retention);
}

static void
empty_attempts(Round *round, int number)
{
	Oid			oid = get_relname_relid(psprintf("attempt_log_%d", number), round->catalog.schema);
	Relation	part = OidIsValid(oid) ? open_at_once(oid) : NULL;
	bool		expired;
	List	   *locks;

	if (part == NULL)
		return;
	expired = attempts_expired(round, part);
	table_close(part, AccessShareLock);
	if (!expired || !lock_for_truncate(oid, &locks))
		return;

	/* somebody may have written to it since */
	part = table_open(oid, NoLock);
	if (attempts_expired(round, part))
	{
		char	   *name = quoted_name(part);
		int64		bytes = table_bytes(part);

		table_close(part, NoLock);
		truncate_table(name);
		report(round, "emptied", number, bytes, "attempt log");
	}
	else
	{
		table_close(part, NoLock);
		unlock_all(locks);
	}
}

/* ---- the whole ---- */

static void
refuse_unfit_transaction(void)
{
	PreventCommandDuringRecovery("outbox.maintain()");
	PreventCommandIfReadOnly("outbox.maintain()");
	PreventCommandIfParallelMode("outbox.maintain()");
	PreventInTransactionBlock(true, "outbox.maintain()");

	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_STATE),
				 errmsg("outbox.maintain() needs isolation level READ COMMITTED"),
				 errdetail("What it proves must be true now, not when the transaction began."),
				 errhint("Call it in a session with default_transaction_isolation = 'read committed'.")));

	/* A ShareLock does not conflict with the lock of an event enqueued by the same transaction: sealing would be wrong. */
	if (TransactionIdIsValid(GetTopTransactionIdIfAny()))
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("outbox.maintain() cannot run in a transaction that has already written"),
				 errdetail("It could not tell the locks of this transaction from nobody's."),
				 errhint("Call it as a statement of its own.")));
}

/* What the receiving side remembers. */
static void
expire(Round *round, OutboxExpiring what, const char *detail)
{
	bool		more;
	uint64		deleted = outbox_expiry_round(round->database, what, round->now, round->budget, &more);

	if (deleted > 0)
		report(round, "expired", -1, deleted, detail)->more = more;
}

static void
run_round(Round *round)
{
	rotate(round);
	seal(round);
	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
		if (i != pg_atomic_read_u32(&round->database->current))
			retire(round, i);

	if (round->thorough)
	{
		bool		readable = lock_log_at_once(round);

		delete_rows(round, delete_ownerless, "deliveries whose subscription is gone");
		if (readable)
		{
			delete_rows(round, delete_expired, "dead letters past outbox.dead_letter_retention");
			delete_rows(round, delete_gaps, "gaps past outbox.dead_letter_retention");
		}
		delete_rows(round, delete_kept, "kept events that no delivery points to any more");
		if (readable)
			delete_rows(round, delete_matches, "matching rules that no event is old enough for");
		delete_rows(round, delete_secrets, "secrets that have expired");
		renew_secrets(round);
		if (readable)
			expire_rows(round, expire_moved, 0, "records of scheduled events that are no longer in the log");
		expire_rows(round, expire_cancelled, outbox_event_retention, "records of scheduled events that were cancelled");
		outbox_expiry_write_refusals(round->database);
	}
	expire_rows(round, expire_dedup, outbox_dedup_window, "keys past outbox.dedup_window");
	expire(round, OUTBOX_EXPIRING_MESSAGES, "message ids past their retention");
	expire(round, OUTBOX_EXPIRING_REQUESTS, "idempotency keys past outbox.request_retention");

	for (int i = 0; i < ATTEMPT_PARTS; i++)
		if (i != outbox_ring_attempt_part(round->now))
			empty_attempts(round, i);

	LWLockAcquire(&round->database->lock, LW_EXCLUSIVE);
	round->database->status.maintained_at = round->now;
	LWLockRelease(&round->database->lock);
}

/* Runs as the owner of the log, whom the caller need not be, and with a safe search path. */
static List *
maintain(bool thorough, int64 budget)
{
	Round		round = {.catalog = *outbox_catalog_required(), .thorough = thorough, .budget = budget, .context = CurrentMemoryContext};
	int			nest_level;
	Oid			user;
	int			security;

	refuse_unfit_transaction();
	round.database = outbox_bell_database(round.catalog.extension);
	round.now = GetCurrentTimestamp();
	outbox_log_floor(round.database);
	if (!ConditionalLockDatabaseObject(ExtensionRelationId, round.catalog.extension, LOCK_RING, ExclusiveLock))
	{
		report(&round, "busy", -1, 0, "another round of maintenance is under way");
		return round.done;
	}

	nest_level = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	/* The tables read for the proof are not locked beforehand: a segment must not stay locked because of one of them. */
	(void) set_config_option("lock_timeout", "1s", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	GetUserIdAndSecContext(&user, &security);
	SetUserIdAndSecContext(outbox_segment_owner(round.catalog.segments[0]), security | SECURITY_LOCAL_USERID_CHANGE);
	SPI_connect();

	run_round(&round);

	SPI_finish();
	SetUserIdAndSecContext(user, security);
	AtEOXact_GUC(false, nest_level);
	return round.done;
}

List *
outbox_ring_maintain(bool thorough)
{
	static TimestampTz thorough_at = 0;
	TimestampTz now = GetCurrentTimestamp();
	List	   *done;
	ListCell   *cell;

	thorough = thorough || now < thorough_at || TimestampDifferenceExceeds(thorough_at, now, THOROUGH_INTERVAL);
	done = maintain(thorough, WORKER_BUDGET);
	if (thorough)
		thorough_at = now;
	foreach(cell, done)
	{
		if (thorough && ((OutboxMaintenance *) lfirst(cell))->more)
			thorough_at = 0;
	}
	return done;
}

/* ---- SQL ---- */

/* maintain() → table (action text, segment int, count bigint, detail text): one round; what it did. */
PG_FUNCTION_INFO_V1(outbox_maintain);
Datum
outbox_maintain(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	List	   *done = maintain(true, CALLER_BUDGET);
	ListCell   *cell;

	InitMaterializedSRF(fcinfo, 0);
	foreach(cell, done)
	{
		OutboxMaintenance *entry = lfirst(cell);
		Datum		values[4] = {
			CStringGetTextDatum(entry->action),
			Int32GetDatum(entry->segment),
			Int64GetDatum(entry->count),
			entry->detail != NULL ? CStringGetTextDatum(entry->detail) : (Datum) 0
		};
		bool		nulls[4] = {false, entry->segment < 0, false, entry->detail == NULL};

		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}

static void
describe_segment(Relation heap, Datum *values, bool *nulls, pg_uuid_t edges[2])
{
	values[1] = ObjectIdGetDatum(RelationGetRelid(heap));
	nulls[5] = !outbox_segment_edge(heap, ForwardScanDirection, true, &edges[0]);
	values[5] = UUIDPGetDatum(&edges[0]);
	nulls[6] = !outbox_segment_edge(heap, BackwardScanDirection, true, &edges[1]);
	values[6] = UUIDPGetDatum(&edges[1]);
	values[7] = Int64GetDatum(table_bytes(heap));
}

/*
 * _segments() → table (segment int, relation regclass, is_current boolean, sealed boolean, seal_tick bigint, first_id uuid, last_id uuid, bytes
 * bigint).  On a standby nothing is current.
 */
PG_FUNCTION_INFO_V1(outbox_segments);
Datum
outbox_segments(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	OutboxCatalog catalog = *outbox_catalog_required();
	OutboxDatabase *database = outbox_bell_database(catalog.extension);

	InitMaterializedSRF(fcinfo, 0);
	if (!RecoveryInProgress())
		outbox_log_floor(database);
	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		Relation	heap = table_open(catalog.segments[i], AccessShareLock);
		Datum		values[8];
		bool		nulls[8] = {false};
		pg_uuid_t	edges[2];
		uint64		seal_tick;

		values[0] = Int32GetDatum(i);
		values[2] = BoolGetDatum(pg_atomic_read_u32(&database->current) == i);
		values[3] = BoolGetDatum(is_sealed(database, i, &seal_tick));
		values[4] = Int64GetDatum((int64) seal_tick);
		nulls[4] = !DatumGetBool(values[3]);
		describe_segment(heap, values, nulls, edges);
		table_close(heap, AccessShareLock);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/*
 * Is this row one that a dump brings back: complete, in a segment, of a transaction that no tick to come is waiting for, and not of a time to come?  (The clock
 * must be past every id there is; a day is for servers whose clocks differ.)
 */
static bool
is_restored(TriggerData *trigger)
{
	const OutboxCatalog *catalog = outbox_catalog();
	TupleDesc	descriptor = RelationGetDescr(trigger->tg_relation);
	HeapTuple	tuple = trigger->tg_trigtuple;
	FullTransactionId next = ReadNextFullTransactionId();
	bool		segment = false;
	bool		isnull;
	pg_uuid_t  *id;
	uint64		xid;
	uint64		oldest;

	for (int i = 0; catalog != NULL && i < OUTBOX_SEGMENTS; i++)
		segment = segment || catalog->segments[i] == RelationGetRelid(trigger->tg_relation);
	if (!segment)
		return false;
	for (EventColumn column = EVENT_ID; column <= EVENT_TYPE; column++)
		if (heap_attisnull(tuple, column, descriptor))
			return false;
	id = DatumGetUUIDP(heap_getattr(tuple, EVENT_ID, descriptor, &isnull));
	if (!outbox_event_id_valid(id) ||
		outbox_event_id_clock(id) > outbox_event_id_clock_at(GetCurrentTimestamp() + USECS_PER_DAY))
		return false;

	if (DatumGetInt64(heap_getattr(tuple, EVENT_EPOCH, descriptor, &isnull)) != catalog->epoch)
		return true;
	xid = U64FromFullTransactionId(DatumGetFullTransactionId(heap_getattr(tuple, EVENT_XID, descriptor, &isnull)));
	oldest = U64FromFullTransactionId(next) - (XidFromFullTransactionId(next) - GetActiveSnapshot()->xmin);
	return xid < oldest;
}

/* _refuse_event_change() → trigger: BEFORE anything on event and its segments. */
PG_FUNCTION_INFO_V1(outbox_refuse_event_change);
Datum
outbox_refuse_event_change(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("outbox._refuse_event_change() must be called as a trigger")));

	if (TRIGGER_FIRED_BY_TRUNCATE(trigger->tg_event) && retiring)
		PG_RETURN_POINTER(NULL);
	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
	{
		if (is_restored(trigger))
			PG_RETURN_POINTER(trigger->tg_trigtuple);
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot insert into table \"%s\" directly", RelationGetRelationName(trigger->tg_relation)),
				 errdetail("Only a restored dump brings rows of its own: complete, and of the past."),
				 errhint("Call outbox.enqueue(), or insert into the view outbox.new_event.")));
	}
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("cannot change table \"%s\"", RelationGetRelationName(trigger->tg_relation)),
			 errdetail("Events are facts: they are neither changed nor deleted."),
			 errhint("Old events are removed by outbox.maintain() after outbox.event_retention. To stop delivering one, use outbox.discard().")));
}

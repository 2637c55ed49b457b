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
#include "bell.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "event_id.h"
#include "event_log.h"
#include "fault.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "ring.h"
#include "segment.h"
#include "settings.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "table.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

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
	LockDatabaseObject(ExtensionRelationId, catalog.extension, OUTBOX_LOCK_FLOOR, ExclusiveLock);

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
	UnlockDatabaseObject(ExtensionRelationId, catalog.extension, OUTBOX_LOCK_FLOOR, ExclusiveLock);
}

/* ---- rotation ---- */

static bool
rotation_due(OutboxRound *round, Relation heap)
{
	pg_uuid_t	first;
	int			age = outbox_segment_age > 0 ? outbox_segment_age : outbox_event_retention / 12;

	if (RelationGetNumberOfBlocks(heap) == 0)
		return false;
	if (outbox_table_bytes(heap) > (int64) outbox_segment_size * 1024)
		return true;
	return outbox_segment_edge(heap, ForwardScanDirection, false, &first) &&
		outbox_upkeep_older(round, outbox_event_id_time(&first), age);
}

/* The next empty segment after the current one; -1 if there is none. */
static int
find_empty(OutboxRound *round, uint32 current)
{
	for (int i = 1; i < OUTBOX_SEGMENTS; i++)
	{
		int			candidate = (current + i) % OUTBOX_SEGMENTS;
		Relation	heap = outbox_table_open(round->catalog.segments[candidate]);
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
rotate(OutboxRound *round)
{
	OutboxDatabase *database = round->database;
	uint32		current = pg_atomic_read_u32(&database->current);
	Relation	heap;
	int64		bytes;
	int			next;

	if (current == OUTBOX_NO_SEGMENT)	/* reset since the round began: the next one finds the floor again */
		return;
	heap = outbox_table_open(round->catalog.segments[current]);
	if (heap == NULL)
		return;
	if (!rotation_due(round, heap))
	{
		table_close(heap, AccessShareLock);
		return;
	}
	bytes = outbox_table_bytes(heap);
	table_close(heap, AccessShareLock);

	next = find_empty(round, current);
	if (next < 0)
	{
		outbox_upkeep_report(round, "full", current, bytes, "no segment is empty: the current one grows");
		return;
	}

	OUTBOX_FAULT("rotate-before-publishing");
	/* Unsealed first: who reads only unsealed segments must find it before a producer does. */
	LWLockAcquire(&database->lock, LW_EXCLUSIVE);
	database->segments[next].sealed = false;
	database->rotated_at = round->now;
	LWLockRelease(&database->lock);
	pg_atomic_write_u32(&database->current, next);
	pg_memory_barrier();
	outbox_upkeep_report(round, "rotated", current, bytes, psprintf("segment %d is current now", next));
	OUTBOX_FAULT("rotate-after-publishing");
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
seal(OutboxRound *round)
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
		OUTBOX_FAULT("seal-before");
		LWLockAcquire(&database->lock, LW_EXCLUSIVE);
		database->segments[i].sealed = true;
		database->segments[i].seal_tick = seal_tick;
		LWLockRelease(&database->lock);
		OUTBOX_FAULT("seal-after");
		if (!empty)
		{
			outbox_upkeep_report(round, "sealed", i, 0, NULL);
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
is_held(OutboxRound *round, uint64 seal_tick, const pg_uuid_t *newest, const pg_uuid_t *oldest)
{
	Oid			types[] = {INT8OID, INT8OID, UUIDOID, UUIDOID};
	Datum		values[] = {Int64GetDatum(round->catalog.epoch), Int64GetDatum((int64) seal_tick), UUIDPGetDatum(newest), UUIDPGetDatum(oldest)};

	return outbox_upkeep_execute(what_holds, 4, types, values) > 0;
}

/* Is it full, read by all, and too old? */
static bool
is_over(OutboxRound *round, Relation heap, uint64 seal_tick)
{
	pg_uuid_t	newest;
	pg_uuid_t	oldest;

	return RelationGetNumberOfBlocks(heap) > 0 &&
		outbox_segment_edge(heap, BackwardScanDirection, false, &newest) &&
		outbox_segment_edge(heap, ForwardScanDirection, false, &oldest) &&
		outbox_upkeep_older(round, outbox_event_id_time(&newest), outbox_event_retention) &&
		!is_held(round, seal_tick, &newest, &oldest);
}

/* Copies the events that a delivery still points to. */
static void
keep_events(OutboxRound *round, int segment, const char *name)
{
	static const char columns[] = "id, xid, epoch, created_at, type, key, tenant, payload, body, content_type, headers, traceparent, scheduled_id";
	uint64		kept = outbox_upkeep_execute(psprintf("INSERT INTO outbox.kept_event (%s) SELECT %s FROM ONLY %s AS e"
										" WHERE EXISTS (SELECT FROM outbox.delivery AS d WHERE d.event_id = coalesce(e.scheduled_id, e.id)) ON CONFLICT DO NOTHING",
										columns, columns, name), 0, NULL, NULL);

	if (kept > 0)
		outbox_upkeep_report(round, "kept", segment, kept, "events that deliveries still point to");
}

/*
 * The proof is made twice: without locks, so as not to disturb anyone in vain, and again when nobody can be in the segment.
 */
static void
retire(OutboxRound *round, int segment)
{
	Oid			oid = round->catalog.segments[segment];
	uint64		seal_tick;
	Relation	heap;
	List	   *locks;
	bool		over;

	if (!is_sealed(round->database, segment, &seal_tick))
		return;
	heap = outbox_table_open(oid);
	if (heap == NULL)
		return;
	over = is_over(round, heap, seal_tick);
	table_close(heap, AccessShareLock);
	if (!over)
		return;

	if (!outbox_table_lock(oid, &locks))
	{
		outbox_upkeep_report(round, "busy", segment, 0, "the segment is in use");
		return;
	}
	heap = table_open(oid, NoLock);
	over = is_over(round, heap, seal_tick);
	if (over)
	{
		char	   *name = outbox_table_name(heap);
		int64		bytes = outbox_table_bytes(heap);

		table_close(heap, NoLock);
		OUTBOX_FAULT("retire-before-keeping");
		keep_events(round, segment, name);
		OUTBOX_FAULT("retire-before-truncating");
		outbox_table_truncate(name);
		OUTBOX_FAULT("retire-before-commit");
		outbox_upkeep_report(round, "retired", segment, bytes, NULL);
		round->thorough = true; /* what it held back can go now */
	}
	else
	{
		table_close(heap, NoLock);
		outbox_table_unlock(locks);
	}
}

void
outbox_ring_turn(OutboxRound *round)
{
	rotate(round);
	seal(round);
	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
		if (i != pg_atomic_read_u32(&round->database->current))
			retire(round, i);
}

/* ---- looking ---- */

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

		if (i == current || !is_sealed(database, i, &segment->seal_tick) || (heap = outbox_table_open(catalog.segments[i])) == NULL)
			continue;
		if (RelationGetNumberOfBlocks(heap) > 0 && outbox_segment_edge(heap, BackwardScanDirection, false, &segment->newest))
		{
			segment->bytes = outbox_table_bytes(heap);
			segment->expired = outbox_event_id_time(&segment->newest) <= expired_at;
			n++;
		}
		table_close(heap, AccessShareLock);
	}
	qsort(segments, n, sizeof(OutboxFullSegment), compare_full);
	return n;
}

static void
describe_segment(Relation heap, Datum *values, bool *nulls, pg_uuid_t edges[2])
{
	values[1] = ObjectIdGetDatum(RelationGetRelid(heap));
	nulls[5] = !outbox_segment_edge(heap, ForwardScanDirection, true, &edges[0]);
	values[5] = UUIDPGetDatum(&edges[0]);
	nulls[6] = !outbox_segment_edge(heap, BackwardScanDirection, true, &edges[1]);
	values[6] = UUIDPGetDatum(&edges[1]);
	values[7] = Int64GetDatum(outbox_table_bytes(heap));
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

/*
 * Lookup.
 *
 * Finds events that committed before we were told of them, whatever the isolation level of the transaction: each table is read with a snapshot taken when it was locked.  An event goes one way
 * only, from its segment to kept_event, in one transaction that empties the segment, and for which the lock waits; so whoever looks into the segments first, and
 * into kept_event last, finds it.
 *
 * The ids of a call lie close together as a rule: they are looked up in their order, going on from entry to entry of the index, and only past a wide gap from its root.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/relscan.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog.h"
#include "compat.h"
#include "lookup.h"
#include "miscadmin.h"
#include "segment.h"
#include "storage/bufmgr.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

#define NEAR 32					/* index entries to walk past rather than to descend anew */

typedef struct Wanted
{
	pg_uuid_t	id;
	int			number;			/* in the caller's list */
} Wanted;

/* A scan of an index on (id) that goes forward. */
typedef struct Walk
{
	IndexScanDesc scan;
	pg_uuid_t	entered_at;		/* the scan's key: the list that it comes from is changed meanwhile */
	bool		there;			/* it is at an entry … */
	pg_uuid_t	id;				/* … with this id */
} Walk;

static int
compare_wanted(const void *a, const void *b)
{
	return memcmp(&((const Wanted *) a)->id, &((const Wanted *) b)->id, sizeof(pg_uuid_t));
}

static void
step(Walk *walk)
{
	bool		isnull;

	walk->there = index_getnext_tid(walk->scan, ForwardScanDirection) != NULL;
	if (walk->there)
		walk->id = *DatumGetUUIDP(index_getattr(walk->scan->xs_itup, 1, walk->scan->xs_itupdesc, &isnull));
}

/* To the first entry that is not before this id, which is not before the last one; false: there is none. */
static bool
walk_to(Walk *walk, const pg_uuid_t *id)
{
	ScanKeyData key;

	for (int i = 0; walk->there && i < NEAR; i++)
	{
		if (memcmp(&walk->id, id, sizeof(pg_uuid_t)) >= 0)
			return true;
		step(walk);
	}
	walk->entered_at = *id;
	ScanKeyInit(&key, 1, BTGreaterEqualStrategyNumber, F_UUID_GE, UUIDPGetDatum(&walk->entered_at));
	index_rescan(walk->scan, &key, 1, NULL, 0);
	step(walk);
	return walk->there;
}

static bool
find(Walk *walk, const pg_uuid_t *id, TupleTableSlot *slot)
{
	if (!walk_to(walk, id))
		return false;
	for (; walk->there && memcmp(&walk->id, id, sizeof(pg_uuid_t)) == 0; step(walk))
	{
		if (index_fetch_heap(walk->scan, slot))
			return true;
	}
	return false;
}

static OutboxStoredEvent
stored_event(TupleTableSlot *slot)
{
	OutboxStoredEvent event;

	slot_getsomeattrs(slot, EVENT_SCHEDULED_ID);
	event.id = slot->tts_values[(slot->tts_isnull[EVENT_SCHEDULED_ID - 1] ? EVENT_ID : EVENT_SCHEDULED_ID) - 1];
	event.created_at = slot->tts_values[EVENT_CREATED_AT - 1];
	event.columns = &slot->tts_values[EVENT_TYPE - 1];
	event.nulls = &slot->tts_isnull[EVENT_TYPE - 1];
	return event;
}

StaticAssertDecl(EVENT_TRACEPARENT - EVENT_TYPE + 1 == OUTBOX_STORED_COLUMNS, "columns from type to traceparent");

/* Visits those that are in this table, and removes them from the list; how many are left. */
static int
look_into(Relation heap, Wanted *wanted, int n, void (*visit) (int number, const OutboxStoredEvent *event, void *arg), void *arg)
{
	Relation	index = outbox_segment_index(heap, false, true);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	TupleTableSlot *slot = table_slot_create(heap, NULL);
	Walk		walk = {.scan = OutboxIndexBeginScan(heap, index, snapshot, 1)};
	int			left = 0;

	walk.scan->xs_want_itup = true;
	for (int i = 0; i < n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		if (find(&walk, &wanted[i].id, slot))
		{
			OutboxStoredEvent event = stored_event(slot);

			visit(wanted[i].number, &event, arg);
		}
		else
			wanted[left++] = wanted[i];
	}
	index_endscan(walk.scan);
	ExecDropSingleTupleTableSlot(slot);
	UnregisterSnapshot(snapshot);
	index_close(index, AccessShareLock);
	return left;
}

static int
look_into_table(Oid table, Wanted *wanted, int n, void (*visit) (int number, const OutboxStoredEvent *event, void *arg), void *arg)
{
	Relation	heap = table_open(table, AccessShareLock);
	int			left = n;

	outbox_segment_check(heap);
	if (RelationGetNumberOfBlocks(heap) > 0)
		left = look_into(heap, wanted, n, visit, arg);
	table_close(heap, left < n ? NoLock : AccessShareLock);
	return left;
}

void
outbox_lookup_events(const pg_uuid_t *log_ids, int n, void (*visit) (int number, const OutboxStoredEvent *event, void *arg), void *arg)
{
	static int	first = 0;		/* the segment in which the last events were found; a guess */
	Wanted	   *wanted = palloc(n * sizeof(Wanted));
	int			begin = first;

	for (int i = 0; i < n; i++)
		wanted[i] = (Wanted) {.id = log_ids[i], .number = i};
	qsort(wanted, n, sizeof(Wanted), compare_wanted);
	for (int i = 0; i < OUTBOX_SEGMENTS && n > 0; i++)
	{
		int			segment = (begin + i) % OUTBOX_SEGMENTS;
		int			left = look_into_table(outbox_catalog_required()->segments[segment], wanted, n, visit, arg);

		if (left < n)
			first = segment;
		n = left;
	}
	if (n > 0)
		(void) look_into_table(get_relname_relid("kept_event", outbox_catalog_required()->schema), wanted, n, visit, arg);
	pfree(wanted);
}

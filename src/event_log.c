/*
 * The event log: append, scan and find.
 *
 * Guarantees that an event is appended to a segment that is still current while its lock is held, with an id taken after the
 * transaction's xid; and that a scan returns exactly what one snapshot sees and another does not, whatever committed in which order.
 * A producer never waits here for delivery or for maintenance, and a reader never waits for anybody.
 *
 * Must never choose a segment by an MVCC read, nor remember one from call to call: what a transaction saw or locked earlier
 * says nothing about where an event may go now.  That its lock is still there may be remembered (held.h).
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/nbtree.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "bell.h"
#include "catalog/pg_class.h"
#include "compat.h"
#include "event_id.h"
#include "event_log.h"
#include "executor/executor.h"
#include "fault.h"
#include "funcapi.h"
#include "held.h"
#include "lib/binaryheap.h"
#include "miscadmin.h"
#include "segment.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/xid8.h"
#include "writer.h"

/* ---- append ---- */

/* Rows that are handed to the table at once. */
#define BATCH 64

/*
 * Opens and locks the current segment.  Whoever rotates publishes another number first and then asks for a ShareLock on this one; so a lock that
 * we got before we saw the number unchanged is one that they will find.  The first try does not wait: a segment that someone has locked
 * is, as a rule, no longer the current one.  One that this transaction has locked already is locked.
 */
static Relation
open_current(OutboxDatabase *database)
{
	static Oid	last = InvalidOid;
	static OutboxHeld held;		/* the lock on that one */

	for (;;)
	{
		uint32		current = pg_atomic_read_u32(&database->current);
		Oid			segment;

		if (current == OUTBOX_NO_SEGMENT)
		{
			outbox_log_floor(database);
			continue;
		}

		segment = outbox_catalog_required()->segments[current];
		if (segment == last && outbox_held_still(&held))
			return table_open(segment, NoLock);
		if (!outbox_held_lock(segment, RowExclusiveLock, false))
		{
			if (pg_atomic_read_u32(&database->current) != current)
				continue;
			(void) outbox_held_lock(segment, RowExclusiveLock, true);
		}
		/* It exists: with its lock we would have heard that it was dropped, and the catalog with us. */
		if (pg_atomic_read_u32(&database->current) == current && outbox_catalog_required()->segments[current] == segment)
		{
			last = segment;
			outbox_held_note(&held);
			return table_open(segment, NoLock);
		}
		outbox_held_unlock(segment, RowExclusiveLock);
	}
}

void
outbox_segment_fill(TupleTableSlot *slot, const OutboxNewEvent *event, const pg_uuid_t *id, FullTransactionId xid, int64 epoch,
					TimestampTz created_at)
{
	Datum	   *values = slot->tts_values;
	bool	   *nulls = slot->tts_isnull;
	struct
	{
		EventColumn column;
		const void *value;
	}			optional[] = {
		{EVENT_KEY, event->key},
		{EVENT_TENANT, event->tenant},
		{EVENT_PAYLOAD, event->payload},
		{EVENT_BODY, event->body},
		{EVENT_CONTENT_TYPE, event->content_type},
		{EVENT_HEADERS, event->headers},
		{EVENT_TRACEPARENT, event->traceparent},
		{EVENT_SCHEDULED_ID, event->scheduled_id}
	};

	ExecClearTuple(slot);
	memset(nulls, true, sizeof(bool) * slot->tts_tupleDescriptor->natts);
	memset(nulls, false, sizeof(bool) * EVENT_TYPE);	/* the first columns, up to this one, are never null */
	values[EVENT_ID - 1] = UUIDPGetDatum(id);
	values[EVENT_XID - 1] = FullTransactionIdGetDatum(xid);
	values[EVENT_EPOCH - 1] = Int64GetDatum(epoch);
	values[EVENT_CREATED_AT - 1] = TimestampTzGetDatum(created_at);
	values[EVENT_TYPE - 1] = PointerGetDatum(event->type);
	for (int i = 0; i < lengthof(optional); i++)
	{
		values[optional[i].column - 1] = PointerGetDatum(optional[i].value);
		nulls[optional[i].column - 1] = optional[i].value == NULL;
	}
}

/* The transaction gets its xid first: snapshot.h.  The clock is found first: it must be past every id there is. */
void
outbox_log_take_id(OutboxDatabase *database, pg_uuid_t *id, TimestampTz *now)
{
	outbox_log_floor(database);
	(void) GetTopFullTransactionId();
	outbox_event_id_next(&database->clock, id, now);
}

/* The rows in the slots of the writer, for events from `first` on; ids that were not taken before are taken now. */
static void
fill_slots(OutboxDatabase *database, TupleTableSlot **slots, const OutboxNewEvent *events, pg_uuid_t *ids, int n, FullTransactionId xid, int64 epoch)
{
	for (int i = 0; i < n; i++)
	{
		const OutboxNewEvent *event = &events[i];
		TimestampTz now;

		if (event->id != NULL)
			ids[i] = *event->id;
		else
			outbox_event_id_next(&database->clock, &ids[i], &now);
		outbox_segment_fill(slots[i], event, &ids[i], xid, epoch, event->created_at != 0 ? event->created_at : now);
		ExecStoreVirtualTuple(slots[i]);
	}
}

void
outbox_log_append(OutboxNewEvent *events, int n, pg_uuid_t *ids)
{
	static OutboxWriter *kept = NULL;
	OutboxDatabase *database = outbox_bell_database(outbox_catalog_required()->extension);
	Relation	heap = open_current(database);
	int64		epoch = outbox_catalog_required()->epoch;	/* of the catalog as it is now that the segment is locked */
	OutboxWriter *writer;
	CommandId	command = GetCurrentCommandId(true);
	FullTransactionId xid = GetTopFullTransactionId();	/* before any id is taken: snapshot.h */

	outbox_segment_check(heap);
	writer = outbox_writer_open(&kept, heap, false);
	for (int done = 0; done < n;)
	{
		int			batch = Min(n - done, BATCH);

		CHECK_FOR_INTERRUPTS();
		OUTBOX_FAULT("enqueue-before-append");
		fill_slots(database, outbox_writer_slots(writer, batch), &events[done], &ids[done], batch, xid, epoch);
		outbox_writer_insert(writer, batch, command);
		done += batch;
	}
	OUTBOX_FAULT("enqueue-after-append");
	outbox_writer_close(&kept, writer);
	table_close(heap, NoLock);	/* the lock stays: sealing depends on it */
	outbox_bell_note(database, OUTBOX_RING_EVENTS);
}

/* ---- segments as relations ---- */

void
outbox_segment_check(Relation heap)
{
	if (RelationGetNumberOfAttributes(heap) < EVENT_SCHEDULED_ID)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" has not the columns of an outbox segment", RelationGetRelationName(heap))));
}

/* The owner of the log, with whose rights it is maintained. */
Oid
outbox_segment_owner(Oid segment)
{
	Relation	heap = table_open(segment, AccessShareLock);
	Oid			owner = heap->rd_rel->relowner;

	table_close(heap, AccessShareLock);
	return owner;
}

/*
 * Opens, in AccessShare mode, the index on (id), or on (xid, id).  They are known by their columns, for a DBA may have rebuilt them
 * under other names.  With `wait` false, NULL if one of the indexes is locked.
 */
Relation
outbox_segment_index(Relation heap, bool by_xid, bool wait)
{
	List	   *indexes = RelationGetIndexList(heap);
	Relation	found = NULL;
	ListCell   *cell;

	foreach(cell, indexes)
	{
		Oid			oid = lfirst_oid(cell);
		Relation	index;

		if (wait)
			LockRelationOid(oid, AccessShareLock);
		else if (!ConditionalLockRelationOid(oid, AccessShareLock))
		{
			list_free(indexes);
			return NULL;
		}
		index = index_open(oid, NoLock);
		if (index->rd_rel->relam == BTREE_AM_OID && index->rd_index->indisvalid &&
			heap_attisnull(index->rd_indextuple, Anum_pg_index_indpred, NULL) &&
			IndexRelationGetNumberOfKeyAttributes(index) == (by_xid ? 2 : 1) &&
			index->rd_index->indkey.values[0] == (by_xid ? EVENT_XID : EVENT_ID) &&
			(!by_xid || index->rd_index->indkey.values[1] == EVENT_ID))
		{
			found = index;
			break;
		}
		index_close(index, AccessShareLock);
	}
	list_free(indexes);

	if (found == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" lacks its index on %s", RelationGetRelationName(heap), by_xid ? "(xid, id)" : "(id)")));
	return found;
}

/* The first or last id of a segment, whatever became of its row; false if there is none, or if its index is locked and not to be waited for. */
bool
outbox_segment_edge(Relation heap, ScanDirection direction, bool wait, pg_uuid_t *id)
{
	Relation	index = outbox_segment_index(heap, false, wait);
	TupleTableSlot *slot;
	IndexScanDesc scan;
	bool		found;

	if (index == NULL)
		return false;
	slot = table_slot_create(heap, NULL);
	scan = OutboxIndexBeginScan(heap, index, SnapshotAny, 0);
	scan->ignore_killed_tuples = false;
	index_rescan(scan, NULL, 0, NULL, 0);
	found = index_getnext_slot(scan, direction, slot);
	if (found)
	{
		bool		isnull;

		*id = *DatumGetUUIDP(slot_getattr(slot, EVENT_ID, &isnull));
	}
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	index_close(index, AccessShareLock);
	return found;
}

/* ---- open and close ---- */

typedef struct Segment
{
	Relation	heap;
	Relation	by_id;
	Relation	by_xid;
} Segment;

struct OutboxLog
{
	int			n;
	Segment		segments[OUTBOX_SEGMENTS];
};

static bool
open_segment(Segment *segment, Oid oid)
{
	if (!ConditionalLockRelationOid(oid, AccessShareLock))
		return false;
	segment->heap = table_open(oid, NoLock);
	outbox_segment_check(segment->heap);
	segment->by_id = outbox_segment_index(segment->heap, false, false);
	if (segment->by_id != NULL)
		segment->by_xid = outbox_segment_index(segment->heap, true, false);
	return segment->by_xid != NULL;
}

/* Also closes what was opened only in part. */
static void
close_segment(Segment *segment)
{
	if (segment->by_xid != NULL)
		index_close(segment->by_xid, AccessShareLock);
	if (segment->by_id != NULL)
		index_close(segment->by_id, AccessShareLock);
	if (segment->heap != NULL)
		table_close(segment->heap, AccessShareLock);
}

OutboxLog *
outbox_log_open(bool all, uint64 tick)
{
	const OutboxCatalog *found = outbox_catalog_required();
	OutboxDatabase *database = outbox_bell_database(found->extension);
	OutboxLog  *log = palloc0(sizeof(OutboxLog));
	Oid			wanted[OUTBOX_SEGMENTS];

	LWLockAcquire(&database->lock, LW_SHARED);
	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		const OutboxSegmentState *state = &database->segments[i];

		wanted[i] = all || !state->sealed || state->seal_tick >= tick ? found->segments[i] : InvalidOid;
	}
	LWLockRelease(&database->lock);

	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
	{
		if (!OidIsValid(wanted[i]))
			continue;
		log->n++;
		if (!open_segment(&log->segments[log->n - 1], wanted[i]))
		{
			outbox_log_close(log);
			return NULL;
		}
	}
	return log;
}

void
outbox_log_close(OutboxLog *log)
{
	for (int i = log->n - 1; i >= 0; i--)
		close_segment(&log->segments[i]);
	pfree(log);
}

/* ---- scan ---- */

/* An index scan whose rows come in id order, with its next row in the slot. */
typedef struct Stream
{
	IndexScanDesc scan;
	TupleTableSlot *slot;
	uint64		from_xid;		/* rows of older transactions belong to other streams, or to none */
	bool		late;			/* of a transaction that base had in progress */
	bool		over;
	pg_uuid_t	id;				/* of the row in the slot */
} Stream;

/* A stream of new rows may meet so many others before its first … */
#define PATIENCE 1000

/* … before it is replaced by one per transaction, if there are so few. */
#define FEW_XIDS 64

struct OutboxScan
{
	Snapshot	snapshot;		/* decides what is visible */
	int64		epoch;
	const OutboxSnapshot *base;
	const OutboxSnapshot *to;
	bool		bodies;
	bool		careful;
	MemoryContext context;

	/* bounds on ids; the scan keys point here */
	bool		has_after;
	pg_uuid_t	after;			/* exclusive */
	pg_uuid_t	unseen;			/* no new row is lower */
	pg_uuid_t	end;			/* exclusive */

	List	   *streams;
	binaryheap *heap;			/* streams that are not at their end, lowest id first */
};

/* binaryheap keeps the largest on top */
static int
compare_streams(Datum a, Datum b, void *arg)
{
	Stream	   *left = (Stream *) DatumGetPointer(a);
	Stream	   *right = (Stream *) DatumGetPointer(b);

	return memcmp(right->id.data, left->id.data, UUID_LEN);
}

static Datum
column(TupleTableSlot *slot, EventColumn number)
{
	bool		isnull;
	Datum		value = slot_getattr(slot, number, &isnull);

	Assert(!isnull);
	return value;
}

static bool
belongs(OutboxScan *scan, Stream *stream)
{
	uint64		xid = U64FromFullTransactionId(DatumGetFullTransactionId(column(stream->slot, EVENT_XID)));

	return xid >= stream->from_xid &&
		(scan->to == NULL || outbox_snapshot_sees(scan->to, xid)) &&
		DatumGetInt64(column(stream->slot, EVENT_EPOCH)) == scan->epoch;
}

typedef enum Advance
{
	ADVANCED,
	AT_END,
	OUT_OF_PATIENCE
} Advance;

/* To the next row that belongs to the scan, past at most so many that do not. */
static Advance
advance_within(OutboxScan *scan, Stream *stream, uint64 patience)
{
	while (index_getnext_slot(stream->scan, ForwardScanDirection, stream->slot))
	{
		CHECK_FOR_INTERRUPTS();
		if (belongs(scan, stream))
		{
			stream->id = *DatumGetUUIDP(column(stream->slot, EVENT_ID));
			return ADVANCED;
		}
		if (patience-- == 0)
			return OUT_OF_PATIENCE;
	}
	ExecClearTuple(stream->slot);
	stream->over = true;
	return AT_END;
}

static bool
advance(OutboxScan *scan, Stream *stream)
{
	return advance_within(scan, stream, PG_UINT64_MAX) == ADVANCED;
}

/* The scan keys that bound ids, for the index column `number`. */
static int
bound_ids(OutboxScan *scan, ScanKey keys, AttrNumber number)
{
	int			n = 0;

	if (scan->has_after)
		ScanKeyInit(&keys[n++], number, BTGreaterStrategyNumber, F_UUID_GT, UUIDPGetDatum(&scan->after));
	if (scan->to != NULL)
		ScanKeyInit(&keys[n++], number, BTLessStrategyNumber, F_UUID_LT, UUIDPGetDatum(&scan->end));
	return n;
}

static Stream *
add_stream(OutboxScan *scan, Relation heap, Relation index, ScanKey keys, int n, uint64 from_xid)
{
	Stream	   *stream = palloc0(sizeof(Stream));

	stream->from_xid = from_xid;
	stream->slot = table_slot_create(heap, NULL);
	stream->scan = OutboxIndexBeginScan(heap, index, scan->snapshot, n);
	index_rescan(stream->scan, keys, n, NULL, 0);
	scan->streams = lappend(scan->streams, stream);
	return stream;
}

static void
remove_stream(OutboxScan *scan, Stream *stream)
{
	scan->streams = list_delete_ptr(scan->streams, stream);
	index_endscan(stream->scan);
	ExecDropSingleTupleTableSlot(stream->slot);
	pfree(stream);
}

/* What one transaction wrote. */
static void
add_xid(OutboxScan *scan, Segment *segment, uint64 xid, bool late)
{
	ScanKeyData keys[3];
	Stream	   *stream;
	int			n;

	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_XID8EQ, FullTransactionIdGetDatum(FullTransactionIdFromU64(xid)));
	n = 1 + bound_ids(scan, &keys[1], 2);
	stream = add_stream(scan, segment->heap, segment->by_xid, keys, n, 0);
	stream->late = late;
	(void) advance(scan, stream);
}

/* The first xid from `xid` on that has a row in the index, dead or alive; false if there is none. */
static bool
probe_xid(IndexScanDesc probe, uint64 xid, uint64 *found)
{
	ScanKeyData key;
	bool		isnull;

	ScanKeyInit(&key, 1, BTGreaterEqualStrategyNumber, F_XID8GE, FullTransactionIdGetDatum(FullTransactionIdFromU64(xid)));
	index_rescan(probe, &key, 1, NULL, 0);
	if (index_getnext_tid(probe, ForwardScanDirection) == NULL)
		return false;
	*found = U64FromFullTransactionId(DatumGetFullTransactionId(index_getattr(probe->xs_itup, 1, probe->xs_itupdesc, &isnull)));
	return true;
}

/* The new transactions with rows in this segment, one by one, if they are few; false, and nothing added, if they are not. */
static bool
add_new_one_by_one(OutboxScan *scan, Segment *segment, uint64 from_xid)
{
	IndexScanDesc probe = OutboxIndexBeginScan(segment->heap, segment->by_xid, scan->snapshot, 1);
	uint64		xids[FEW_XIDS];
	uint64		xid = from_xid;
	int			n = 0;

	probe->xs_want_itup = true;
	while (n <= FEW_XIDS && probe_xid(probe, xid, &xid) && (scan->to == NULL || xid < scan->to->xmax))
	{
		if (n < FEW_XIDS)
			xids[n] = xid;
		n++;
		xid++;
	}
	index_endscan(probe);
	if (n > FEW_XIDS)
		return false;
	for (int i = 0; i < n; i++)
		if (scan->to == NULL || outbox_snapshot_sees(scan->to, xids[i]))
			add_xid(scan, segment, xids[i], false);
	return true;
}

/*
 * What began after base: ids above its clock, xids not yet assigned then.  As a rule the (id) index from there on holds little else.  But a large transaction
 * that base had in progress may have filled it for long; then the new ones are looked up by xid, if they are few.
 */
static void
add_new(OutboxScan *scan, Segment *segment)
{
	ScanKeyData keys[3];
	int			n = bound_ids(scan, keys, 1);
	uint64		from_xid = scan->base != NULL ? scan->base->next : 0;
	Stream	   *stream;

	ScanKeyInit(&keys[n++], 1, BTGreaterEqualStrategyNumber, F_UUID_GE, UUIDPGetDatum(&scan->unseen));
	stream = add_stream(scan, segment->heap, segment->by_id, keys, n, from_xid);
	if (advance_within(scan, stream, PATIENCE) != OUT_OF_PATIENCE)
		return;
	if (add_new_one_by_one(scan, segment, from_xid))
		remove_stream(scan, stream);
	else
		(void) advance(scan, stream);
}

/* Was in progress at base, and `to` sees it. */
static bool
is_late(OutboxScan *scan, uint64 xid)
{
	return xid < scan->base->next && !outbox_snapshot_sees(scan->base, xid) &&
		(scan->to == NULL || outbox_snapshot_sees(scan->to, xid));
}

/*
 * The first xid from `xid` on that may be late: one that base listed, or any from its xmax on.  *position moves
 * along base->xip.  Past the last one, something >= base->next.
 */
static uint64
next_candidate(OutboxScan *scan, uint64 xid, uint32 *position)
{
	const OutboxSnapshot *base = scan->base;

	for (; *position < base->nxip; (*position)++)
		if (base->xip[*position] >= xid && is_late(scan, base->xip[*position]))
			return base->xip[*position];
	return Max(xid, base->xmax);
}

/*
 * A stream for each late transaction with rows in this segment, found by merging the candidates with the xids in the index: each goes forward to what the
 * other has next, so that neither transactions without events nor events of other transactions are walked through.
 */
static void
add_all_late(OutboxScan *scan, Segment *segment)
{
	IndexScanDesc probe = OutboxIndexBeginScan(segment->heap, segment->by_xid, scan->snapshot, 1);
	uint64		xid = 0;
	uint32		position = 0;

	probe->xs_want_itup = true;
	for (;;)
	{
		uint64		found;

		CHECK_FOR_INTERRUPTS();
		xid = next_candidate(scan, xid, &position);
		if (xid >= scan->base->next || !probe_xid(probe, xid, &found))
			break;
		if (is_late(scan, found))
			add_xid(scan, segment, found, true);
		xid = found + 1;
	}
	index_endscan(probe);
}

OutboxScan *
outbox_log_scan(OutboxLog *log, int64 epoch, const OutboxSnapshot *base, const OutboxSnapshot *to,
				const pg_uuid_t *after, const pg_uuid_t *new_from, bool bodies, bool careful)
{
	OutboxScan *scan = palloc0(sizeof(OutboxScan));
	ListCell   *cell;

	scan->snapshot = RegisterSnapshot(GetActiveSnapshot());
	scan->epoch = epoch;
	scan->base = base;
	scan->to = to;
	scan->bodies = bodies;
	scan->careful = careful;
	scan->context = CurrentMemoryContext;
	if (after != NULL)
	{
		scan->has_after = true;
		scan->after = *after;
	}
	if (new_from != NULL)
		scan->unseen = *new_from;
	else if (base != NULL)
		outbox_event_id_lowest(base->clock + 1, &scan->unseen);
	if (to != NULL)
		outbox_event_id_lowest(to->clock + 1, &scan->end);

	for (int i = 0; i < log->n; i++)
	{
		Segment    *segment = &log->segments[i];

		if (RelationGetNumberOfBlocks(segment->heap) == 0)
			continue;
		add_new(scan, segment);
		if (base != NULL)
			add_all_late(scan, segment);
	}
	scan->heap = binaryheap_allocate(Max(list_length(scan->streams), 1), compare_streams, NULL);
	foreach(cell, scan->streams)
		if (!((Stream *) lfirst(cell))->over)
			binaryheap_add_unordered(scan->heap, PointerGetDatum(lfirst(cell)));
	binaryheap_build(scan->heap);
	return scan;
}

/* ---- rows to events ---- */

static char *
text_column(TupleTableSlot *slot, EventColumn number)
{
	bool		isnull;
	Datum		value = slot_getattr(slot, number, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

/* The columns of fixed size: readable whatever happened to the rest. */
static void
read_fixed(TupleTableSlot *slot, OutboxEvent *event)
{
	memset(event, 0, sizeof(*event));
	event->log_id = *DatumGetUUIDP(column(slot, EVENT_ID));
	event->id = event->log_id;
	event->xid = U64FromFullTransactionId(DatumGetFullTransactionId(column(slot, EVENT_XID)));
	event->created_at = DatumGetTimestampTz(column(slot, EVENT_CREATED_AT));
}

const pg_uuid_t *outbox_log_reading = NULL;
static pg_uuid_t being_read;	/* what it points to: an event that could not be read may be freed before somebody asks */
bool		(*outbox_log_shun) (const pg_uuid_t *log_id) = NULL;

/* What lies in the row itself is as readable as the row.  What lies elsewhere, or is compressed, is not known to be before it has been read. */
static bool
may_leave_out(Datum value)
{
	struct varlena *attribute = (struct varlena *) DatumGetPointer(value);

	return !VARATT_IS_EXTERNAL(attribute) && !VARATT_IS_COMPRESSED(attribute);
}

static void
read_body(TupleTableSlot *slot, OutboxEvent *event, bool wanted)
{
	bool		isnull;
	Datum		value = slot_getattr(slot, EVENT_PAYLOAD, &isnull);

	event->json = !isnull;
	if (isnull)
		value = slot_getattr(slot, EVENT_BODY, &isnull);
	if (isnull)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("event has neither payload nor body")));

	if (!wanted && may_leave_out(value))
		event->body_size = VARSIZE_ANY_EXHDR(DatumGetPointer(value));
	else if (event->json)
	{
		Jsonb	   *payload = DatumGetJsonbP(value);

		event->body = JsonbToCString(NULL, &payload->root, VARSIZE(payload));
		event->body_size = strlen(event->body);
		event->content_type = pstrdup("application/json");
	}
	else
	{
		bytea	   *body = DatumGetByteaPP(value);

		event->body_size = VARSIZE_ANY_EXHDR(body);
		event->body = text_to_cstring((text *) body);	/* only the types differ */
		event->content_type = text_column(slot, EVENT_CONTENT_TYPE);
	}
}

static void
read_rest(TupleTableSlot *slot, OutboxEvent *event, bool bodies)
{
	bool		isnull;
	Datum		headers;
	Datum		scheduled_id;

	scheduled_id = slot_getattr(slot, EVENT_SCHEDULED_ID, &isnull);
	if (!isnull)
		event->id = *DatumGetUUIDP(scheduled_id);	/* first: also of an event whose body cannot be read */
	event->type = text_column(slot, EVENT_TYPE);
	read_body(slot, event, bodies || event->type == NULL || strcmp(event->type, OUTBOX_PING_TYPE) == 0);
	event->key = text_column(slot, EVENT_KEY);
	event->tenant = text_column(slot, EVENT_TENANT);
	event->traceparent = text_column(slot, EVENT_TRACEPARENT);
	headers = slot_getattr(slot, EVENT_HEADERS, &isnull);
	if (!isnull)
		event->headers = DatumGetJsonbPCopy(headers);
	OUTBOX_FAULT_EVENT("read-event", event->type);
}

/*
 * A subtransaction, because an error in the middle of reading TOAST leaves pins and open relations behind.  What is not the
 * row's fault is raised all the same.
 */
static void
read_rest_carefully(TupleTableSlot *slot, OutboxEvent *event)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		event->unreadable = false;
		read_rest(slot, event, true);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		int			category = ERRCODE_TO_CATEGORY(geterrcode());
		pg_uuid_t	id = event->id;

		if (category == ERRCODE_TO_CATEGORY(ERRCODE_OPERATOR_INTERVENTION) || geterrcode() == ERRCODE_OUT_OF_MEMORY)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		read_fixed(slot, event);
		event->id = id;
		event->unreadable = true;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
}

#define READ_TRIES 3

static void
read_event(TupleTableSlot *slot, OutboxEvent *event, bool bodies, bool careful)
{
	read_fixed(slot, event);
	being_read = event->log_id;
	outbox_log_reading = &being_read;
	if (outbox_log_shun != NULL && outbox_log_shun(&event->log_id))
		event->unreadable = true;
	else if (!careful)
		read_rest(slot, event, bodies);
	else
	{
		/* whoever gives it up should be sure */
		for (int i = 0; i < READ_TRIES && (i == 0 || event->unreadable); i++)
			read_rest_carefully(slot, event);
	}
	outbox_log_reading = NULL;
}

/* The stream with the lowest id; NULL at the end. */
static Stream *
first_stream(OutboxScan *scan)
{
	return binaryheap_empty(scan->heap) ? NULL : (Stream *) DatumGetPointer(binaryheap_first(scan->heap));
}

/* Goes on from the first stream's row. */
static void
step(OutboxScan *scan)
{
	MemoryContext caller = MemoryContextSwitchTo(scan->context);
	Stream	   *stream = first_stream(scan);

	if (advance(scan, stream))
		binaryheap_replace_first(scan->heap, PointerGetDatum(stream));
	else
		binaryheap_remove_first(scan->heap);
	MemoryContextSwitchTo(caller);
}

bool
outbox_log_next(OutboxScan *scan, OutboxEvent *event)
{
	Stream	   *stream = first_stream(scan);

	if (stream == NULL)
		return false;
	read_event(stream->slot, event, scan->bodies, scan->careful);
	step(scan);
	return true;
}

void
outbox_log_new_from(OutboxScan *scan, pg_uuid_t *id)
{
	ListCell   *cell;

	memset(id->data, 0xFF, UUID_LEN);
	foreach(cell, scan->streams)
	{
		Stream	   *stream = lfirst(cell);

		if (!stream->late && !stream->over && memcmp(stream->id.data, id->data, UUID_LEN) < 0)
			*id = stream->id;
	}
}

void
outbox_log_end(OutboxScan *scan)
{
	ListCell   *cell;

	foreach(cell, scan->streams)
	{
		Stream	   *stream = lfirst(cell);

		index_endscan(stream->scan);
		ExecDropSingleTupleTableSlot(stream->slot);
	}
	list_free_deep(scan->streams);
	binaryheap_free(scan->heap);
	UnregisterSnapshot(scan->snapshot);
	pfree(scan);
}

/* ---- find ---- */

static bool
find_in(Relation heap, Relation by_id, const pg_uuid_t *id, OutboxEvent *event)
{
	ScanKeyData key;
	IndexScanDesc scan;
	TupleTableSlot *slot;
	bool		found;

	if (RelationGetNumberOfBlocks(heap) == 0)
		return false;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_UUID_EQ, UUIDPGetDatum(id));
	slot = table_slot_create(heap, NULL);
	scan = OutboxIndexBeginScan(heap, by_id, GetActiveSnapshot(), 1);
	index_rescan(scan, &key, 1, NULL, 0);
	found = index_getnext_slot(scan, ForwardScanDirection, slot);
	if (found)
		read_event(slot, event, true, true);
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	return found;
}

static bool
find_kept(const pg_uuid_t *id, OutboxEvent *event)
{
	Relation	kept = table_open(get_relname_relid("kept_event", outbox_catalog_required()->schema), AccessShareLock);
	Relation	by_id = outbox_segment_index(kept, false, true);
	bool		found = find_in(kept, by_id, id, event);

	index_close(by_id, AccessShareLock);
	table_close(kept, AccessShareLock);
	return found;
}

bool
outbox_log_find(OutboxLog *log, const pg_uuid_t *log_id, OutboxEvent *event)
{
	for (int i = 0; i < log->n; i++)
		if (find_in(log->segments[i].heap, log->segments[i].by_id, log_id, event))
			return true;
	return find_kept(log_id, event);
}

/* ---- SQL ---- */

/*
 * since(snapshot pg_snapshot, next xid8, clock bigint, after uuid, at_most bigint) → setof uuid: the events of this epoch, above `after`, that this
 * position (see outbox._position_now()) does not see; in id order.  snapshot, after, at_most null: no bound.
 *
 * Not declared by the extension: it lets test/specs read the log as the worker does.
 */
PG_FUNCTION_INFO_V1(outbox_events_since);
Datum
outbox_events_since(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	const OutboxSnapshot *base = NULL;
	const pg_uuid_t *after = PG_ARGISNULL(3) ? NULL : PG_GETARG_UUID_P(3);
	int64		left = PG_ARGISNULL(4) ? PG_INT64_MAX : PG_GETARG_INT64(4);
	OutboxLog  *log;
	OutboxScan *scan;

	if (!PG_ARGISNULL(0) && !PG_ARGISNULL(1) && !PG_ARGISNULL(2))
		base = outbox_snapshot_from_datum(PG_GETARG_DATUM(0), U64FromFullTransactionId(PG_GETARG_FULLTRANSACTIONID(1)), PG_GETARG_INT64(2));
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);

	log = outbox_log_open(true, 0);
	if (log == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("the event log is locked"),
				 errhint("Try again.")));
	scan = outbox_log_scan(log, outbox_catalog_required()->epoch, base, NULL, after, NULL, false, false);
	for (; left > 0 && first_stream(scan) != NULL; left--)
	{
		Datum		value = UUIDPGetDatum(&first_stream(scan)->id);
		bool		isnull = false;

		tuplestore_putvalues(result->setResult, result->setDesc, &value, &isnull);
		step(scan);
	}
	outbox_log_end(scan);
	outbox_log_close(log);
	return (Datum) 0;
}

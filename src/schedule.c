/*
 * Scheduled events.
 *
 * They wait in a table of their own, outbox.scheduled, whose columns are those of an event, and when to deliver it.  Once due, the worker moves them into the log, oldest
 * deliver_at first: a row deleted there, a row appended here, a row of outbox.unscheduled that says which became which; one transaction, so an event is in exactly one of the two.
 *
 * In the log it has another id than the one that enqueue() returned.  The log is read by id, and a window rests on newer transactions having newer ids (snapshot.h): a row with an id of last month
 * would be in no window.  So the id in the log is new, and the row carries the old one, which is the event's for everybody but readers of the log (OutboxEvent in event_log.h).
 *
 * Rows of another epoch, which a restored dump or logical replication brings, are not ours to move before start() has adopted them.
 *
 * A cancelled event is deleted from outbox.scheduled by SQL.  Who has deleted a row and not committed yet has it locked: the move leaves it out, and cancel() waits for a
 * move, which is short.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "bell.h"
#include "catalog/pg_am.h"
#include "compat.h"
#include "executor/executor.h"
#include "fault.h"
#include "held.h"
#include "miscadmin.h"
#include "schedule.h"
#include "segment.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* The columns of outbox.scheduled after those of an event */
typedef enum ScheduledColumn
{
	SCHEDULED_DELIVER_AT = EVENT_SCHEDULED_ID + 1,
	SCHEDULED_DEDUP_KEY
} ScheduledColumn;

/* The columns of outbox.unscheduled */
typedef enum UnscheduledColumn
{
	UNSCHEDULED_ID = 1,
	UNSCHEDULED_STATUS,
	UNSCHEDULED_LOG_ID,
	UNSCHEDULED_DELIVER_AT,
	UNSCHEDULED_AT
} UnscheduledColumn;

/* A move deletes and appends so many at a time: they are in memory together. */
#define MOVE_AT_ONCE 200

/* Of events that cannot be moved, a move reports no more. */
#define REPORT_AT_ONCE 10

static Oid
table_oid(const char *name)
{
	return get_relname_relid(name, outbox_catalog_required()->schema);
}

/* ---- a table that rows are appended to ---- */

typedef struct Target
{
	Relation	table;
	EState	   *estate;
	ResultRelInfo *result;
	TupleTableSlot *slot;
} Target;

static Target
open_target(Relation table)
{
	Target		target = {.table = table, .estate = CreateExecutorState(), .result = makeNode(ResultRelInfo)};

	target.slot = table_slot_create(table, NULL);
	InitResultRelInfo(target.result, table, 0, NULL, 0);
	ExecOpenIndices(target.result, false);
	return target;
}

/* What is in the slot, stored. */
static void
append_row(Target *target)
{
	ExecStoreVirtualTuple(target->slot);
	table_tuple_insert(target->table, target->slot, GetCurrentCommandId(true), 0, NULL);
	if (target->result->ri_NumIndices > 0)
		list_free(OutboxExecInsertIndexTuples(target->result, target->slot, target->estate));
	ResetPerTupleExprContext(target->estate);
}

/* The table itself stays open. */
static void
close_target(Target *target)
{
	ExecCloseIndices(target->result);
	ExecDropSingleTupleTableSlot(target->slot);
	FreeExecutorState(target->estate);
}

/* ---- scheduling: in the producer's transaction ---- */

void
outbox_schedule_append(const OutboxNewEvent *events, int n)
{
	const OutboxCatalog catalog = *outbox_catalog_required();
	OutboxDatabase *database = outbox_bell_database(catalog.extension);
	Relation	table = outbox_held_open(table_oid("scheduled"));
	Target		target = open_target(table);
	FullTransactionId xid = GetTopFullTransactionId();

	for (int i = 0; i < n; i++)
	{
		const OutboxNewEvent *event = &events[i];
		TupleTableSlot *slot = target.slot;

		CHECK_FOR_INTERRUPTS();
		outbox_segment_fill(slot, event, event->id, xid, catalog.epoch, event->created_at);
		slot->tts_values[SCHEDULED_DELIVER_AT - 1] = TimestampTzGetDatum(event->deliver_at);
		slot->tts_isnull[SCHEDULED_DELIVER_AT - 1] = false;
		slot->tts_values[SCHEDULED_DEDUP_KEY - 1] = PointerGetDatum(event->dedup_key);
		slot->tts_isnull[SCHEDULED_DEDUP_KEY - 1] = event->dedup_key == NULL;
		append_row(&target);
		outbox_bell_note_due(database, event->deliver_at);
	}
	OUTBOX_FAULT("schedule-after-append");
	close_target(&target);
	table_close(table, NoLock);
}

/* ---- moving: in the worker's transaction ---- */

static Relation
open_at_once(const char *name, LOCKMODE mode)
{
	Oid			oid = table_oid(name);

	return ConditionalLockRelationOid(oid, mode) ? table_open(oid, NoLock) : NULL;
}

/* The index on (deliver_at, …), known by its column; NULL if it is locked. */
static Relation
open_due_index(Relation table)
{
	List	   *indexes = RelationGetIndexList(table);
	Relation	found = NULL;
	ListCell   *cell;

	foreach(cell, indexes)
	{
		Relation	index;

		if (!ConditionalLockRelationOid(lfirst_oid(cell), AccessShareLock))
		{
			list_free(indexes);
			return NULL;
		}
		index = index_open(lfirst_oid(cell), NoLock);
		if (index->rd_rel->relam == BTREE_AM_OID && index->rd_index->indisvalid &&
			heap_attisnull(index->rd_indextuple, Anum_pg_index_indpred, NULL) &&
			index->rd_index->indkey.values[0] == SCHEDULED_DELIVER_AT)
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
				 errmsg("table \"%s\" lacks its index on (deliver_at, id)", RelationGetRelationName(table))));
	return found;
}

/* In the order of deliver_at, from a time on (after: only later ones). */
static IndexScanDesc
begin_scan(Relation table, Relation index, TimestampTz from, bool after)
{
	IndexScanDesc scan = OutboxIndexBeginScan(table, index, GetActiveSnapshot(), 1);
	ScanKeyData key;

	ScanKeyInit(&key, 1, after ? BTGreaterStrategyNumber : BTGreaterEqualStrategyNumber,
				after ? F_TIMESTAMPTZ_GT : F_TIMESTAMPTZ_GE, TimestampTzGetDatum(from));
	index_rescan(scan, &key, 1, NULL, 0);
	return scan;
}

static Datum
column(TupleTableSlot *slot, int number)
{
	bool		isnull;
	Datum		value = slot_getattr(slot, number, &isnull);

	return isnull ? (Datum) 0 : value;
}

/* Events that have been deleted from the one table, before they are in the other. */
typedef struct Batch
{
	MemoryContext context;
	int			n;
	pg_uuid_t	scheduled_ids[MOVE_AT_ONCE];
	TimestampTz deliver_at[MOVE_AT_ONCE];
	OutboxNewEvent events[MOVE_AT_ONCE];
	pg_uuid_t	log_ids[MOVE_AT_ONCE];
} Batch;

/* The values are copied as they are stored: what is in TOAST stays there until it is appended.  A husk has no content: whoever reads it in the log finds it unreadable. */
static void
take(Batch *batch, TupleTableSlot *slot, bool husk)
{
	MemoryContext old = MemoryContextSwitchTo(batch->context);
	HeapTuple	tuple = ExecCopySlotHeapTuple(slot);
	TupleDesc	descriptor = slot->tts_tupleDescriptor;
	Datum	   *values = palloc_array(Datum, descriptor->natts);
	bool	   *nulls = palloc_array(bool, descriptor->natts);
	OutboxNewEvent *event = &batch->events[batch->n];

	heap_deform_tuple(tuple, descriptor, values, nulls);
#define VALUE(number) (nulls[(number) - 1] ? NULL : DatumGetPointer(values[(number) - 1]))
	batch->scheduled_ids[batch->n] = *DatumGetUUIDP(values[EVENT_ID - 1]);
	batch->deliver_at[batch->n] = DatumGetTimestampTz(values[SCHEDULED_DELIVER_AT - 1]);
	*event = (OutboxNewEvent) {
		.type = (text *) VALUE(EVENT_TYPE),
		.key = (text *) VALUE(EVENT_KEY),
		.tenant = (text *) VALUE(EVENT_TENANT),
		.payload = (Jsonb *) VALUE(EVENT_PAYLOAD),
		.body = (bytea *) VALUE(EVENT_BODY),
		.content_type = (text *) VALUE(EVENT_CONTENT_TYPE),
		.headers = (Jsonb *) VALUE(EVENT_HEADERS),
		.traceparent = (text *) VALUE(EVENT_TRACEPARENT),
		.scheduled_id = &batch->scheduled_ids[batch->n],
		.created_at = DatumGetTimestampTz(values[EVENT_CREATED_AT - 1])
	};
#undef VALUE
	if (husk)
	{
		event->payload = NULL;
		event->body = NULL;
		event->content_type = NULL;
		event->headers = NULL;
		event->traceparent = NULL;
	}
	batch->n++;
	MemoryContextSwitchTo(old);
}

static void
write_unscheduled(Batch *batch, Target *target)
{
	text	   *status = cstring_to_text("moved");
	TimestampTz now = GetCurrentTimestamp();

	for (int i = 0; i < batch->n; i++)
	{
		TupleTableSlot *slot = target->slot;

		ExecClearTuple(slot);
		memset(slot->tts_isnull, true, sizeof(bool) * slot->tts_tupleDescriptor->natts);
		memset(slot->tts_isnull, false, sizeof(bool) * UNSCHEDULED_AT);
		slot->tts_values[UNSCHEDULED_ID - 1] = UUIDPGetDatum(&batch->scheduled_ids[i]);
		slot->tts_values[UNSCHEDULED_STATUS - 1] = PointerGetDatum(status);
		slot->tts_values[UNSCHEDULED_LOG_ID - 1] = UUIDPGetDatum(&batch->log_ids[i]);
		slot->tts_values[UNSCHEDULED_DELIVER_AT - 1] = TimestampTzGetDatum(batch->deliver_at[i]);
		slot->tts_values[UNSCHEDULED_AT - 1] = TimestampTzGetDatum(now);
		append_row(target);
	}
}

static void
flush(Batch *batch, Target *unscheduled)
{
	MemoryContext old = MemoryContextSwitchTo(batch->context);

	if (batch->n > 0)
	{
		OUTBOX_FAULT("move-before-append");
		outbox_log_append(batch->events, batch->n, batch->log_ids);
		write_unscheduled(batch, unscheduled);
	}
	batch->n = 0;
	MemoryContextSwitchTo(old);
	MemoryContextReset(batch->context);
}

/* Ours from here on?  What somebody else is deleting, or has locked, is not waited for. */
static bool
delete_at_once(Relation table, TupleTableSlot *slot, OutboxMove *move)
{
	TM_FailureData failure;
	TM_Result	result = table_tuple_delete(table, &slot->tts_tid, GetCurrentCommandId(true), GetActiveSnapshot(), InvalidSnapshot,
											false, &failure, false);

	if (result == TM_BeingModified || result == TM_WouldBlock)
		move->skipped = true;
	else if (result != TM_Ok && result != TM_Deleted && result != TM_Updated)
		elog(ERROR, "could not delete a row of table \"%s\": %d", RelationGetRelationName(table), result);
	return result == TM_Ok;
}

/*
 * Where the next one is, asked in a new snapshot: it does not see what was deleted here, and sees all whose producers had not told of them when the move began.  After a
 * time, or from the last one moved on.
 */
static TimestampTz
find_next(Relation table, Relation index, TimestampTz from, bool after)
{
	TupleTableSlot *slot = table_slot_create(table, NULL);
	TimestampTz next = DT_NOEND;
	IndexScanDesc scan;

	CommandCounterIncrement();
	PushActiveSnapshot(GetTransactionSnapshot());
	scan = begin_scan(table, index, from, after);
	if (index_getnext_slot(scan, ForwardScanDirection, slot))
		next = DatumGetTimestampTz(column(slot, SCHEDULED_DELIVER_AT));
	index_endscan(scan);
	PopActiveSnapshot();
	ExecDropSingleTupleTableSlot(slot);
	return next;
}

/* Out of the one table; into the other with the next flush. */
static void
move_row(Relation table, TupleTableSlot *slot, Batch *batch, bool husk, OutboxMove *move)
{
	if (!delete_at_once(table, slot, move))
		return;
	OUTBOX_FAULT_EVENT("move-event", TextDatumGetCString(column(slot, EVENT_TYPE)));
	take(batch, slot, husk);
	move->moved++;
}

/* Raises if something of the row cannot be read. */
static void
read_through(TupleTableSlot *slot)
{
	static const AttrNumber stored[] = {EVENT_PAYLOAD, EVENT_BODY, EVENT_CONTENT_TYPE, EVENT_HEADERS, EVENT_TRACEPARENT};

	for (int i = 0; i < lengthof(stored); i++)
	{
		bool		isnull;
		Datum		value = slot_getattr(slot, stored[i], &isnull);

		if (!isnull)
		{
			struct varlena *plain = PG_DETOAST_DATUM(value);

			if ((Pointer) plain != DatumGetPointer(value))
				pfree(plain);
		}
	}
}

/*
 * At once, and in a subtransaction: one that cannot be moved must not keep the others waiting.  What is not the row's fault is raised all the same.  If its content cannot be read, that is lost: what is
 * left, a husk, is moved in a second go, and becomes a dead letter.  If it could be read but not appended, it stays, for somebody to find out why.
 */
static void
move_row_carefully(Relation table, TupleTableSlot *slot, Batch *batch, Target *unscheduled, bool husk, OutboxMove *move)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	int			moved = move->moved;
	volatile bool damaged = !husk;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		if (!husk)
			read_through(slot);
		damaged = false;
		move_row(table, slot, batch, husk, move);
		flush(batch, unscheduled);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		int			category = ERRCODE_TO_CATEGORY(geterrcode());
		ErrorData  *error;

		if (category == ERRCODE_TO_CATEGORY(ERRCODE_OPERATOR_INTERVENTION) ||
			category == ERRCODE_TO_CATEGORY(ERRCODE_INSUFFICIENT_RESOURCES))
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		if (move->failed++ < REPORT_AT_ONCE)
			ereport(LOG,
					(errcode(error->sqlerrcode),
					 errmsg("scheduled event %s cannot be delivered: %s",
							DatumGetCString(DirectFunctionCall1(uuid_out, column(slot, EVENT_ID))), error->message)));
		FreeErrorData(error);
		batch->n = 0;
		MemoryContextReset(batch->context);
		move->moved = moved;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	if (damaged)
		move_row_carefully(table, slot, batch, unscheduled, true, move);
}

/* Moves what is due, up to the budget; returns false when that was not all. *last: where to go on. */
static bool
move_due(Relation table, Relation index, TimestampTz *last, TimestampTz until, int64 budget, bool careful, OutboxMove *move)
{
	const int64 epoch = outbox_catalog_required()->epoch;
	Relation	unscheduled = NULL;
	Target		target;
	Batch	   *batch = palloc0(sizeof(Batch));
	TupleTableSlot *slot = table_slot_create(table, NULL);
	TimestampTz began_at = GetCurrentTimestamp();
	IndexScanDesc scan = begin_scan(table, index, *last, false);
	bool		all = true;
	int			moved = 0;		/* before the last row */

	batch->context = AllocSetContextCreate(CurrentMemoryContext, "outbox move", ALLOCSET_DEFAULT_SIZES);
	while (index_getnext_slot(scan, ForwardScanDirection, slot))
	{
		TimestampTz at = DatumGetTimestampTz(column(slot, SCHEDULED_DELIVER_AT));

		CHECK_FOR_INTERRUPTS();
		if (at > until)
			break;

		/* Not among events that are due at the same time, unless the last one is gone: else the next move would begin with the same ones. */
		if (GetCurrentTimestamp() - began_at >= budget && (at > *last || move->moved > moved))
		{
			*last = at;
			all = false;
			break;
		}
		moved = move->moved;
		*last = at;
		if (DatumGetInt64(column(slot, EVENT_EPOCH)) != epoch)
			continue;
		if (unscheduled == NULL)
		{
			unscheduled = table_open(table_oid("unscheduled"), RowExclusiveLock);
			target = open_target(unscheduled);
		}
		if (careful)
			move_row_carefully(table, slot, batch, &target, false, move);
		else
			move_row(table, slot, batch, false, move);
		if (batch->n == MOVE_AT_ONCE)
			flush(batch, &target);
	}
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	if (unscheduled != NULL)
	{
		flush(batch, &target);
		close_target(&target);
		table_close(unscheduled, NoLock);
	}
	MemoryContextDelete(batch->context);
	pfree(batch);
	return all;
}

OutboxMove
outbox_schedule_move(TimestampTz from, TimestampTz until, int64 budget, bool careful)
{
	OutboxMove	move = {.next = DT_NOEND};
	Relation	table = open_at_once("scheduled", RowExclusiveLock);
	Relation	index;

	if (table == NULL)
	{
		move.busy = true;
		return move;
	}
	if (RelationGetNumberOfBlocks(table) == 0)
	{
		table_close(table, NoLock);
		return move;
	}
	index = open_due_index(table);
	if (index == NULL)
		move.busy = true;
	else
	{
		TimestampTz last = from;
		bool		all = move_due(table, index, &last, until, budget, careful, &move);

		move.next = find_next(table, index, all ? until : last, all);
		index_close(index, NoLock);
	}
	table_close(table, NoLock);
	return move;
}

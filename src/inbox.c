/*
 * The inbox: each message id is accepted once per consumer, in the consumer's own transaction.
 *
 * accept() is true in the first transaction that commits with it, and false afterwards.  Who comes while that transaction is open waits for its end: it decides.  False is
 * said only of a commit that is durable, for the caller will skip the message on its account; and, to a transaction whose snapshot is older than
 * that commit, not at all: it gets a serialization failure, as from INSERT … ON CONFLICT DO NOTHING.
 *
 * A key lock makes "look, and insert if it is not there" one step for all callers of the same id, so nothing is ever inserted in vain: a duplicate writes nothing, and raises
 * nothing.  The lock is held for that step only; who must wait for a transaction lets go of it first, and looks again afterwards.  The index is unique all the same,
 * for rows that others than accept() bring: restored dumps, replication.
 *
 * Must never run code of others (expressions of indexes that a DBA added) while it has the lock.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/relscan.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "bell.h"
#include "catalog.h"
#include "catalog/index.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "compat.h"
#include "durable.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "funcapi.h"
#include "held.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define MAX_MESSAGE_ID 512

/* The columns of outbox.inbox, and of its primary key.  What comes after the last one is a DBA's. */
typedef enum InboxColumn
{
	INBOX_ACCEPTED_AT = 1,
	INBOX_MESSAGE_ID,
	INBOX_CONSUMER
} InboxColumn;

#define KEY_COLUMNS 2			/* message_id, consumer: the first is different in every entry, so that comparisons end there */

/* The table, opened for some ids of one consumer. */
typedef struct Inbox
{
	text	   *consumer;
	uint64		consumer_hash;
	Relation	heap;
	Relation	index;			/* the primary key */
	struct IndexInfo *index_info;	/* of it, made for the first insertion */
	bool		more_indexes;	/* that must be maintained too */
	SnapshotData dirty;			/* sees what is not committed yet, and says by whom it is */
	IndexScanDesc scan;
	TupleTableSlot *found;
	TupleTableSlot *fresh;
	TransactionId durable;		/* known to be: a batch that comes again was accepted by one transaction, as a rule */
} Inbox;

/* ---- arguments ---- */

static void
check_caller(const char *function)
{
	PreventCommandDuringRecovery(function);
	PreventCommandIfReadOnly(function);
	PreventCommandIfParallelMode(function);
}

static void
check_text(const text *value, const char *name, int limit, const char *hint)
{
	int			size;

	if (value == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", name),
				 errdetail("A message is accepted by its id, for a consumer."),
				 errhint("%s", hint)));
	size = VARSIZE_ANY_EXHDR(value);
	if (size == 0 || size > limit)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid %s", name),
				 errdetail("It has %d bytes; from 1 to %d are possible.", size, limit),
				 errhint("%s", hint)));
}

static void
check_consumer(const text *consumer)
{
	check_text(consumer, "consumer", OUTBOX_MAX_CONSUMER, "Name what the message is for, such as billing.");
}

static void
check_id(const text *id)
{
	check_text(id, "message_id", MAX_MESSAGE_ID, "Use the identifier that the sender gives each message, such as webhook-id, or a hash of it.");
}

/* ---- the table ---- */

/* The primary key, which must be the one that the install script made, or one like it. */
static Relation
open_key(Relation heap)
{
	Relation	index = OidIsValid(heap->rd_pkindex) ? index_open(heap->rd_pkindex, RowExclusiveLock) : NULL;

	if (index == NULL || RelationGetNumberOfAttributes(heap) < INBOX_CONSUMER || !index->rd_index->indimmediate ||
		index->rd_index->indnatts != KEY_COLUMNS || index->rd_index->indkey.values[0] != INBOX_MESSAGE_ID ||
		index->rd_index->indkey.values[1] != INBOX_CONSUMER)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" has lost its primary key", RelationGetRelationName(heap)),
				 errdetail("Messages could not be recognized without it."),
				 errhint("Add PRIMARY KEY (message_id, consumer) again.")));
	return index;
}

static void
open_inbox(Inbox *inbox, text *consumer)
{
	const OutboxCatalog *catalog = outbox_catalog_required();
	List	   *indexes;

	inbox->consumer = consumer;
	inbox->consumer_hash = hash_bytes_extended((const unsigned char *) VARDATA_ANY(consumer), VARSIZE_ANY_EXHDR(consumer), MyDatabaseId) | 1;
	(void) outbox_bell_database(catalog->extension);	/* raises if the library was not preloaded */
	inbox->heap = outbox_held_open(catalog->inbox);
	indexes = RelationGetIndexList(inbox->heap);
	inbox->more_indexes = list_length(indexes) > 1;
	list_free(indexes);
	inbox->index = open_key(inbox->heap);

	InitDirtySnapshot(inbox->dirty);
	inbox->scan = OutboxIndexBeginScan(inbox->heap, inbox->index, &inbox->dirty, KEY_COLUMNS);
	inbox->found = table_slot_create(inbox->heap, NULL);
	inbox->fresh = NULL;
	inbox->index_info = NULL;
	inbox->durable = InvalidTransactionId;
}

/* The locks stay until the transaction ends, as an INSERT's would. */
static void
close_inbox(Inbox *inbox)
{
	index_endscan(inbox->scan);
	ExecDropSingleTupleTableSlot(inbox->found);
	if (inbox->fresh != NULL)
		ExecDropSingleTupleTableSlot(inbox->fresh);
	index_close(inbox->index, NoLock);
	table_close(inbox->heap, NoLock);
}

static bool
look_up(Inbox *inbox, text *id)
{
	ScanKeyData keys[KEY_COLUMNS];

	ScanKeyEntryInitialize(&keys[0], 0, 1, BTEqualStrategyNumber, InvalidOid, C_COLLATION_OID, F_TEXTEQ, PointerGetDatum(id));
	ScanKeyEntryInitialize(&keys[1], 0, 2, BTEqualStrategyNumber, InvalidOid, C_COLLATION_OID, F_TEXTEQ, PointerGetDatum(inbox->consumer));
	index_rescan(inbox->scan, keys, KEY_COLUMNS, NULL, 0);
	return index_getnext_slot(inbox->scan, ForwardScanDirection, inbox->found);
}

/* Nothing stays pinned while the caller waits for a transaction. */
static void
forget_found(Inbox *inbox)
{
	ExecClearTuple(inbox->found);
	index_rescan(inbox->scan, NULL, KEY_COLUMNS, NULL, 0);
}

static void
insert(Inbox *inbox, text *id)
{
	TupleTableSlot *slot = inbox->fresh;
	Datum		values[KEY_COLUMNS] = {PointerGetDatum(id), PointerGetDatum(inbox->consumer)};
	bool		nulls[KEY_COLUMNS] = {false};

	if (slot == NULL)
	{
		slot = inbox->fresh = MakeSingleTupleTableSlot(RelationGetDescr(inbox->heap), &TTSOpsVirtual);
		inbox->index_info = BuildIndexInfo(inbox->index);
	}
	ExecClearTuple(slot);
	memset(slot->tts_isnull, true, sizeof(bool) * slot->tts_tupleDescriptor->natts);
	memset(slot->tts_isnull, false, sizeof(bool) * INBOX_CONSUMER);
	slot->tts_values[INBOX_ACCEPTED_AT - 1] = TimestampTzGetDatum(GetCurrentTimestamp());
	slot->tts_values[INBOX_MESSAGE_ID - 1] = values[0];
	slot->tts_values[INBOX_CONSUMER - 1] = values[1];
	ExecStoreVirtualTuple(slot);

	/* The partial check neither raises nor waits. What it could find here did not come by way of accept(). */
	table_tuple_insert(inbox->heap, slot, GetCurrentCommandId(true), 0, NULL);
	if (!index_insert(inbox->index, values, nulls, &slot->tts_tid, inbox->heap, UNIQUE_CHECK_PARTIAL, false, inbox->index_info))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not accept the message"),
				 errdetail("It was inserted into table \"%s\" at the same time by other means.", RelationGetRelationName(inbox->heap)),
				 errhint("The transaction might succeed if retried.")));
}

/* The new row also goes into indexes that a DBA has added, or is building. */
static void
insert_into_more_indexes(Inbox *inbox)
{
	EState	   *estate = CreateExecutorState();
	ResultRelInfo *target = makeNode(ResultRelInfo);

	InitResultRelInfo(target, inbox->heap, 0, NULL, 0);
	ExecOpenIndices(target, false);
	for (int i = 0; i < target->ri_NumIndices; i++)
	{
		if (RelationGetRelid(target->ri_IndexRelationDescs[i]) == RelationGetRelid(inbox->index))
		{
			int			last = --target->ri_NumIndices;

			index_close(target->ri_IndexRelationDescs[i], NoLock);	/* it is there already */
			target->ri_IndexRelationDescs[i] = target->ri_IndexRelationDescs[last];
			target->ri_IndexRelationInfo[i] = target->ri_IndexRelationInfo[last];
			break;
		}
	}
	list_free(OutboxExecInsertIndexTuples(target, inbox->fresh, estate));
	ExecCloseIndices(target);
	FreeExecutorState(estate);
}

/* ---- accepting ---- */

/* Adds one to the consumer's count, which is for people: what does not find a place is not counted. */
static void
count_refusal(Inbox *inbox)
{
	OutboxDatabase *database = outbox_bell_database(outbox_catalog_required()->extension);

	for (int i = 0; i < OUTBOX_REFUSALS; i++)
	{
		OutboxRefusals *place = &database->refusals[(inbox->consumer_hash + i) % OUTBOX_REFUSALS];

		if (pg_atomic_read_u64(&place->consumer) == 0)
		{
			LWLockAcquire(&database->lock, LW_EXCLUSIVE);
			if (pg_atomic_read_u64(&place->consumer) == 0)
			{
				text_to_cstring_buffer(inbox->consumer, place->name, sizeof(place->name));
				pg_write_barrier();
				pg_atomic_write_u64(&place->consumer, inbox->consumer_hash);
			}
			LWLockRelease(&database->lock);
		}
		if (pg_atomic_read_u64(&place->consumer) == inbox->consumer_hash)
		{
			pg_atomic_fetch_add_u64(&place->count, 1);
			return;
		}
	}
}

/* The row in inbox->found is there for good: may this transaction rely on it? */
static void
check_found(Inbox *inbox)
{
	bool		isnull;
	TransactionId xmin = DatumGetTransactionId(slot_getsysattr(inbox->found, MinTransactionIdAttributeNumber, &isnull));

	if (TransactionIdIsCurrentTransactionId(xmin))
		return;
	if (IsolationUsesXactSnapshot() && !table_tuple_satisfies_snapshot(inbox->heap, inbox->found, GetActiveSnapshot()))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to concurrent accept"),
				 errdetail("A transaction that committed after this one took its snapshot has accepted the message."),
				 errhint("The transaction might succeed if retried.")));
	if (!TransactionIdEquals(xmin, inbox->durable))
		outbox_durable_wait(xmin);
	inbox->durable = xmin;
}

static bool
accept_one(Inbox *inbox, text *id)
{
	uint64		hash = hash_bytes_extended((const unsigned char *) VARDATA_ANY(id), VARSIZE_ANY_EXHDR(id), inbox->consumer_hash);
	LWLock	   *lock = outbox_bell_key_lock(hash);

	for (;;)
	{
		TransactionId other;
		ItemPointerData place;

		CHECK_FOR_INTERRUPTS();
		LWLockAcquire(lock, LW_EXCLUSIVE);
		if (!look_up(inbox, id))
		{
			insert(inbox, id);
			LWLockRelease(lock);
			if (inbox->more_indexes)
				insert_into_more_indexes(inbox);
			return true;
		}
		LWLockRelease(lock);

		/* who has inserted it, or deletes it because it has expired, and is not through yet */
		other = TransactionIdIsValid(inbox->dirty.xmin) ? inbox->dirty.xmin : inbox->dirty.xmax;
		if (!TransactionIdIsValid(other))
			break;
		place = inbox->found->tts_tid;
		forget_found(inbox);
		XactLockTableWait(other, inbox->heap, &place, XLTW_InsertIndex);
	}
	check_found(inbox);
	count_refusal(inbox);
	return false;
}

#define ARGUMENT_TEXT(n) (PG_ARGISNULL(n) ? NULL : PG_GETARG_TEXT_PP(n))

/* accept(consumer text, message_id text) → boolean */
PG_FUNCTION_INFO_V1(outbox_accept);
Datum
outbox_accept(PG_FUNCTION_ARGS)
{
	text	   *consumer = ARGUMENT_TEXT(0);
	text	   *id = ARGUMENT_TEXT(1);
	Inbox		inbox;
	bool		accepted;

	check_caller("outbox.accept()");
	check_consumer(consumer);
	check_id(id);
	open_inbox(&inbox, consumer);
	accepted = accept_one(&inbox, id);
	close_inbox(&inbox);
	PG_RETURN_BOOL(accepted);
}

/* ---- many at once ---- */

typedef struct Candidate
{
	text	   *id;
	int			place;			/* in the array */
	bool		accepted;
} Candidate;

/* By id, and the first of equal ones first: an order that is the same for all, so that two who wait for each other's ids cannot be. */
static int
compare_ids(const void *a, const void *b)
{
	const Candidate *left = a;
	const Candidate *right = b;
	int			left_size = VARSIZE_ANY_EXHDR(left->id);
	int			right_size = VARSIZE_ANY_EXHDR(right->id);
	int			order = memcmp(VARDATA_ANY(left->id), VARDATA_ANY(right->id), Min(left_size, right_size));

	if (order == 0)
		order = left_size - right_size;
	return order != 0 ? order : left->place - right->place;
}

static int
compare_places(const void *a, const void *b)
{
	return ((const Candidate *) a)->place - ((const Candidate *) b)->place;
}

static Candidate *
candidates_of(ArrayType *array, int *n)
{
	Datum	   *values;
	bool	   *nulls;
	Candidate  *candidates;

	if (ARR_NDIM(array) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("message_ids must be a one-dimensional array"),
				 errdetail("It has %d dimensions.", ARR_NDIM(array)),
				 errhint("Write it as ARRAY['id', 'id'].")));
	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &values, &nulls, n);
	candidates = palloc_array(Candidate, *n);
	for (int i = 0; i < *n; i++)
	{
		candidates[i].id = nulls[i] ? NULL : DatumGetTextPP(values[i]);
		candidates[i].place = i;
		candidates[i].accepted = false;
		check_id(candidates[i].id);
	}
	return candidates;
}

/* accept_many(consumer text, message_ids text[]) → text[]: those that are new, in their order */
PG_FUNCTION_INFO_V1(outbox_accept_many);
Datum
outbox_accept_many(PG_FUNCTION_ARGS)
{
	text	   *consumer = ARGUMENT_TEXT(0);
	Candidate  *candidates;
	Datum	   *accepted;
	int			n;
	int			n_accepted = 0;
	Inbox		inbox;

	check_caller("outbox.accept_many()");
	check_consumer(consumer);
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("message_ids must not be null"),
				 errdetail("For no messages there is the empty array."),
				 errhint("Give an array of message ids.")));
	candidates = candidates_of(PG_GETARG_ARRAYTYPE_P(1), &n);
	if (n == 0)
		PG_RETURN_ARRAYTYPE_P(construct_empty_array(TEXTOID));

	qsort(candidates, n, sizeof(Candidate), compare_ids);
	open_inbox(&inbox, consumer);
	for (int i = 0; i < n; i++)
		candidates[i].accepted = accept_one(&inbox, candidates[i].id);
	close_inbox(&inbox);
	qsort(candidates, n, sizeof(Candidate), compare_places);

	accepted = palloc_array(Datum, n);
	for (int i = 0; i < n; i++)
	{
		if (candidates[i].accepted)
			accepted[n_accepted++] = PointerGetDatum(candidates[i].id);
	}
	PG_RETURN_ARRAYTYPE_P(construct_array(accepted, n_accepted, TEXTOID, -1, false, TYPALIGN_INT));
}

/* ---- counts ---- */

/* _refusals() → table (consumer text, duplicates bigint): those not written down yet */
PG_FUNCTION_INFO_V1(outbox_refusals);
Datum
outbox_refusals(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	OutboxDatabase *database = outbox_bell_database(outbox_catalog_required()->extension);

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < OUTBOX_REFUSALS; i++)
	{
		OutboxRefusals *place = &database->refusals[i];
		uint64		count = pg_atomic_read_u64(&place->count);
		Datum		values[2];
		bool		nulls[2] = {false};

		if (pg_atomic_read_u64(&place->consumer) == 0 || count == 0)
			continue;
		pg_read_barrier();
		values[0] = CStringGetTextDatum(place->name);
		values[1] = Int64GetDatum((int64) count);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}

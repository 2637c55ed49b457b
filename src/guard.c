/*
 * The guard of the event log: nobody changes it by hand.
 *
 * Only what restores a dump may insert rows, and only retirement may truncate; also the tables of cursors, which a publisher with outbox would truncate by replication.
 */
#include "postgres.h"

#include "access/transam.h"
#include "catalog.h"
#include "commands/trigger.h"
#include "event_id.h"
#include "fmgr.h"
#include "segment.h"
#include "table.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"
#include "utils/xid8.h"

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

	if (TRIGGER_FIRED_BY_TRUNCATE(trigger->tg_event) && outbox_table_truncating())
		PG_RETURN_POINTER(NULL);
	if (TRIGGER_FIRED_BY_TRUNCATE(trigger->tg_event) && SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot truncate table \"%s\" by replication", RelationGetRelationName(trigger->tg_relation)),
				 errdetail("The publisher is done with what it holds there; this installation may not be."),
				 errhint("Publish no more than inserts: WITH (publish = 'insert').")));
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

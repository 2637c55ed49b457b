/*
 * A segment as a table: what event_log.c, lookup.c, ring.c, upkeep.c, guard.c and schedule.c share, and nobody else includes.
 */
#ifndef OUTBOX_SEGMENT_H
#define OUTBOX_SEGMENT_H

#include "access/sdir.h"
#include "access/transam.h"
#include "event_log.h"
#include "executor/tuptable.h"
#include "utils/rel.h"
#include "utils/uuid.h"

/* The columns of outbox.event, its segments, kept_event and scheduled.  What comes after the last one is a DBA's. */
typedef enum EventColumn
{
	EVENT_ID = 1,
	EVENT_XID,
	EVENT_EPOCH,
	EVENT_CREATED_AT,
	EVENT_TYPE,
	EVENT_KEY,
	EVENT_TENANT,
	EVENT_PAYLOAD,
	EVENT_BODY,
	EVENT_CONTENT_TYPE,
	EVENT_HEADERS,
	EVENT_TRACEPARENT,
	EVENT_SCHEDULED_ID
} EventColumn;

/* Fills a row with what an event is; columns after the last one are NULL.  The caller stores it. */
extern void outbox_segment_fill(TupleTableSlot *slot, const OutboxNewEvent *event, const pg_uuid_t *id, FullTransactionId xid,
								int64 epoch, TimestampTz created_at);

extern Oid	outbox_segment_owner(Oid segment);
extern void outbox_segment_check(Relation heap);
extern Relation outbox_segment_index(Relation heap, bool by_xid, bool wait);
extern bool outbox_segment_edge(Relation heap, ScanDirection direction, bool wait, pg_uuid_t *id);

#endif							/* OUTBOX_SEGMENT_H */

/*
 * Lookup: committed events by their places in the log, for a backend that was told of them.
 */
#ifndef OUTBOX_LOOKUP_H
#define OUTBOX_LOOKUP_H

#include "utils/uuid.h"

/* An event as it is stored, valid while it is visited; what may be TOASTed is as it is. */
typedef struct OutboxStoredEvent
{
	Datum		id;				/* uuid: what enqueue() returned */
	Datum		created_at;
	const Datum *columns;		/* type, key, tenant, payload, body, content_type, headers, traceparent … */
	const bool *nulls;
} OutboxStoredEvent;

#define OUTBOX_STORED_COLUMNS 8

/*
 * Visits those of n events that exist, by their log_ids: number is their place in the list.  In the order of the log, table by table.  The
 * segments in which some were found stay locked, in AccessShare mode, until the transaction ends, so that what is TOASTed can be read until then.
 */
extern void outbox_lookup_events(const pg_uuid_t *log_ids, int n, void (*visit) (int number, const OutboxStoredEvent *event, void *arg), void *arg);

#endif							/* OUTBOX_LOOKUP_H */

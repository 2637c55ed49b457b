/*
 * The event log: a fixed ring of append-only tables ("segments").
 *
 * The only room that knows the tuple layout of outbox.event.  It appends, reads what one snapshot sees and
 * another did not, and finds single events; ring.h rotates, seals and retires.  It holds no policy beyond
 * that: who may enqueue, and who is interested in which event, is decided elsewhere.
 */
#ifndef OUTBOX_EVENT_LOG_H
#define OUTBOX_EVENT_LOG_H

#include "bell.h"
#include "catalog.h"
#include "datatype/timestamp.h"
#include "snapshot.h"
#include "utils/jsonb.h"
#include "utils/rel.h"
#include "utils/uuid.h"

/* ---- append: in the producer's transaction ---- */

/*
 * A row to be; NULL members are SQL NULL.  Exactly one of payload and body is set.  What may be TOASTed is passed on as it is.
 */
typedef struct OutboxNewEvent
{
	text	   *type;
	text	   *key;
	text	   *tenant;
	Jsonb	   *payload;
	bytea	   *body;
	text	   *content_type;
	Jsonb	   *headers;
	text	   *traceparent;

	/* not given as a rule */
	const pg_uuid_t *id;		/* taken before (outbox_log_take_id), with created_at; NULL: append takes one */
	const pg_uuid_t *scheduled_id;	/* what enqueue() returned, if the event was scheduled */
	TimestampTz created_at;		/* 0: the time of the id */
	TimestampTz deliver_at;		/* 0: at once */
	text	   *dedup_key;
} OutboxNewEvent;

/* Appends n checked events to the current segment, in order; fills ids[]. The segment stays locked until the transaction ends. */
extern void outbox_log_append(OutboxNewEvent *events, int n, pg_uuid_t *ids);

/* Takes an id for an event of this transaction that is yet to be appended; also says which instant it took. */
extern void outbox_log_take_id(OutboxDatabase *database, pg_uuid_t *id, TimestampTz *now);

/* ---- read: in the worker's short transactions ---- */

/* An event as a reader sees it.  Strings are NUL-terminated, UTF-8 or the database's encoding; NULL is SQL NULL. */
typedef struct OutboxEvent
{
	pg_uuid_t	id;				/* what enqueue() returned: webhook-id, ce-id, event_id of every table */
	pg_uuid_t	log_id;			/* its place in the log: the same, unless it was scheduled */
	uint64		xid;
	TimestampTz created_at;
	char	   *type;
	char	   *key;
	char	   *tenant;
	char	   *body;			/* the payload's text, or the raw bytes; NULL in an event that cannot be read, or without its body */
	size_t		body_size;		/* of a payload that was not read: as it is stored */
	char	   *content_type;	/* application/json for a payload; comes with the body */
	Jsonb	   *headers;		/* object of strings */
	char	   *traceparent;
	bool		json;			/* body is the text of a jsonb payload */
	bool		unreadable;		/* careful scan: the row could not be read; only id, xid, created_at are set */
} OutboxEvent;

#define OUTBOX_PING_TYPE "outbox.ping"	/* a test event, for one subscription only, named in its payload */

typedef struct OutboxLog OutboxLog;

/*
 * Opens the segments (all, or only those that tick `tick` must still read: not sealed, or sealed no earlier than it) in AccessShare mode,
 * without waiting: NULL if one is locked.  Closing releases the locks.  With `all` false, take the tick's snapshot first: a segment left out may be
 * emptied and written anew at once.
 */
extern PGDLLEXPORT OutboxLog *outbox_log_open(bool all, uint64 tick);
extern PGDLLEXPORT void outbox_log_close(OutboxLog *log);

typedef struct OutboxScan OutboxScan;

/*
 * All committed events of `epoch` that `to` sees and `base` does not, with id > *after, in id order.  base NULL: everything `to`
 * sees.  after NULL: from the start.  `to` NULL: everything the active snapshot sees.  Lazy: costs what is read.  The active snapshot must be
 * `to` or later.  careful: a row that cannot be decoded (corrupted) comes back `unreadable` instead of raising.  bodies: with their bodies; otherwise they may come without, except
 * test events.
 *
 * Streams merged by id, per segment:
 *  - the (id) index from base->clock on, for rows with xid >= base->next;
 *  - the (xid, id) index for each xid that base had in progress (in xip, or in [xmax, next)) and that has rows.
 */
extern PGDLLEXPORT OutboxScan *outbox_log_scan(OutboxLog *log, int64 epoch, const OutboxSnapshot *base,
											   const OutboxSnapshot *to, const pg_uuid_t *after,
											   const pg_uuid_t *new_from, bool bodies, bool careful);

/*
 * What the scan learned: the rows of transactions that base had not seen begin come no earlier than this id from here on.  A later scan of the same window, from here on, is
 * told so (new_from; NULL: nothing known) and need not look for them again among the rows of a large late transaction.
 */
extern PGDLLEXPORT void outbox_log_new_from(OutboxScan *scan, pg_uuid_t *id);

/* The next event, its parts allocated in CurrentMemoryContext; false at the end. */
extern PGDLLEXPORT const pg_uuid_t *outbox_log_reading;	/* the event that is being read; NULL: none */
extern PGDLLEXPORT bool (*outbox_log_shun) (const pg_uuid_t *log_id);	/* if set, says which events are to count as unreadable */
extern PGDLLEXPORT bool outbox_log_next(OutboxScan *scan, OutboxEvent *event);
extern PGDLLEXPORT void outbox_log_end(OutboxScan *scan);

/* One event by its log_id, wherever it is (segments, then kept_event); false if it is gone.  Visible to the active snapshot only. */
extern PGDLLEXPORT bool outbox_log_find(OutboxLog *log, const pg_uuid_t *log_id, OutboxEvent *event);

/* Establishes id clock, tick counter and current segment after a server start (ring.c).  Cheap when that was done. */
extern PGDLLEXPORT void outbox_log_floor(OutboxDatabase *database);

#endif							/* OUTBOX_EVENT_LOG_H */

/*
 * Ticks, positions and chunks: what there is to read, and from where.
 *
 * A tick is a snapshot with a number; a position says how far somebody has read; a chunk is a piece of a window
 * (the events one tick sees and an earlier one does not) in memory, shared by everyone who is at its place.
 */
#ifndef OUTBOX_TICK_H
#define OUTBOX_TICK_H

#include "access/xlogdefs.h"
#include "lib/ilist.h"

#include "event_log.h"
#include "message.h"

typedef struct OutboxTick
{
	uint64		number;			/* 0: a subscription's start, or nothing at all */
	OutboxSnapshot *snapshot;	/* NULL: sees nothing */
	uint64		offset;			/* events ticked up to its end, for people */
	TimestampTz at;
	XLogRecPtr	lsn;			/* flushed up to here, and all it sees is durable */
	bool		durable;		/* may be sent: flushed, and confirmed by synchronous standbys */
	uint32		persisted;		/* the ledger generation in which its row was written */
	int			pins;
} OutboxTick;

/* All that base saw is done; of (base, upper] all up to `after` (nothing yet unless partial). base == upper: all of it. */
typedef struct OutboxPosition
{
	int64		restored;		/* epoch of restored events, which are read first; 0: this installation's */
	OutboxTick *base;
	OutboxTick *upper;
	bool		partial;
	pg_uuid_t	after;
	bool		hinted;			/* new_from is set: */
	pg_uuid_t	new_from;		/* what the log learned on the way (outbox_log_new_from); not part of where it is */
	bool		inside;			/* in the middle of a chunk of the window: others may be in it too, so it is read on from there … */
	bool		begun_partial;	/* … which began at this place: nothing yet unless set … */
	pg_uuid_t	begun_after;	/* … else after this event */
} OutboxPosition;

/* An event in memory, with what every subscription needs worked out once. */
typedef struct OutboxLoggedEvent
{
	OutboxEvent event;
	char		id_text[OUTBOX_ID_TEXT];
	uint64		key_hash;
	uint64		type_hash;		/* outbox_chunk_hash; of what is NULL: 0 */
	uint64		tenant_hash;
	bool		for_all;		/* every subscription must be asked: nobody knows whose it was, or a ping */

	/* as it is sent: in UTF-8, if it is sure what that is */
	char	   *type;
	char	   *key;
	char	   *content_type;
	char	   *body;
	Size		body_size;
	OutboxHeader *headers;
	int			n_headers;
	bool		utf8;

	Jsonb	   *payload;		/* of the body; once a filter has asked (outbox_chunk_payload) */
} OutboxLoggedEvent;

/* A subscription that already has a delivery row for an event of a chunk: it must not enter again. */
typedef struct OutboxSettled
{
	int32		subscription;
	pg_uuid_t	event_id;
} OutboxSettled;

/* Which names occur in a chunk: a bit for each, so that a name without its bit does not. */
typedef struct OutboxDigest
{
	uint64		words[64];
} OutboxDigest;

static inline void
outbox_digest_add(OutboxDigest *digest, uint64 hash)
{
	digest->words[(hash >> 6) & 63] |= UINT64CONST(1) << (hash & 63);
}

static inline bool
outbox_digest_may_have(const OutboxDigest *digest, uint64 hash)
{
	return (digest->words[(hash >> 6) & 63] >> (hash & 63)) & 1;
}

typedef struct OutboxChunk
{
	dlist_node	node;			/* in the cache, most recently used first */
	MemoryContext context;
	Size		bytes;
	Size		payload_bytes;	/* of them, what filters have asked for */
	int			pins;
	bool		cached;
	OutboxPosition from;		/* before its first event */
	OutboxPosition to;			/* after its last one */
	int			n;
	int			room;
	OutboxLoggedEvent *events;
	bool		bodies;			/* they have their bodies; else only those that the log could not leave out */
	bool		for_all;		/* one of them is */
	OutboxDigest types;
	OutboxDigest tenants;
	bool		settled_known;	/* `settled` was looked up */
	int			n_settled;
	OutboxSettled *settled;
} OutboxChunk;

/* ---- ticks ---- */

/* The tick that sees nothing; and the one that sees everything there is, which only windows of restored events end with. */
extern OutboxTick *outbox_tick_nothing(void);
extern OutboxTick *outbox_tick_everything(void);

/* A new tick.  The current transaction must have no xid; its new snapshot is pushed as the active one.  Pinned once. */
extern OutboxTick *outbox_tick_take(OutboxDatabase *database);

/* A tick from its row. Pinned once. */
extern OutboxTick *outbox_tick_restore(uint64 number, OutboxSnapshot *snapshot, uint64 offset, TimestampTz at);

extern OutboxTick *outbox_tick_pin(OutboxTick *tick);
extern void outbox_tick_unpin(OutboxTick *tick);

/* Makes all that the tick sees durable on this server, writing and flushing at most one small WAL record. Outside a transaction. */
extern void outbox_tick_flush(OutboxTick *tick);

/* May its events be sent?  With synchronous standbys: once they confirmed its LSN. Never waits. */
extern bool outbox_tick_durable(OutboxTick *tick);

/* ---- positions (they pin their ticks) ---- */

extern void outbox_position_set(OutboxPosition *position, const OutboxPosition *value);
extern void outbox_position_clear(OutboxPosition *position);
extern bool outbox_position_same(const OutboxPosition *a, const OutboxPosition *b);

/* The position before event number i of a chunk; a borrowed value: set it somewhere to keep it. */
extern OutboxPosition outbox_chunk_before(const OutboxChunk *chunk, int i);

/* ---- chunks ---- */

/* The event of a chunk with which somebody at this position, who found it there, goes on. */
extern int	outbox_chunk_index(const OutboxChunk *chunk, const OutboxPosition *position);

/* Does it not even reach this position in its middle? */
extern bool outbox_chunk_ends_before(const OutboxChunk *chunk, const OutboxPosition *position);

/* The hash by which types and tenants are looked up. */
extern uint64 outbox_chunk_hash(const char *name);

/* The cached chunk at this place, or around it, pinned; NULL: none.  settled: only one whose `settled` is known.  bodies: only one with bodies. */
extern OutboxChunk *outbox_chunk_find(const OutboxPosition *position, bool settled, bool bodies);

/*
 * Reads the next chunk from `position`, or the one around it; the window's upper end is position->upper if partial, else `upper`.  In a transaction with an active snapshot. Pinned once, and
 * cached.  An empty chunk means the window is done. `settled`: also look up delivery rows (ledger).  bodies: they are wanted.
 */
extern OutboxChunk *outbox_chunk_read(OutboxLog *log, int64 epoch, const OutboxPosition *position, OutboxTick *upper,
									  bool careful, bool settled, bool bodies);

/* The events at the first *n of these places (log_id) that still exist, as a private chunk, pinned once; *n becomes less when they are large. */
extern OutboxChunk *outbox_chunk_fetch(OutboxLog *log, const pg_uuid_t *log_ids, int *n);

/* The payload of an event as jsonb, for filters; NULL: it has none.  Valid until the next call. */
extern Jsonb *outbox_chunk_payload(OutboxChunk *chunk, int index);

extern OutboxChunk *outbox_chunk_pin(OutboxChunk *chunk);
extern void outbox_chunk_unpin(OutboxChunk *chunk);
extern bool outbox_chunk_is_settled(const OutboxChunk *chunk, int32 subscription, const pg_uuid_t *event_id);

#endif							/* OUTBOX_TICK_H */

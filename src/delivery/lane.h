/*
 * Lanes and items: the queues of one subscription each, order per key, retries, exceptions.
 */
#ifndef OUTBOX_LANE_H
#define OUTBOX_LANE_H

#include "lib/ilist.h"
#include "lib/pairingheap.h"
#include "utils/hsearch.h"

#include "breaker.h"
#include "ledger.h"
#include "subscription.h"
#include "tick.h"
#include "turns.h"

typedef enum OutboxItemState
{
	OUTBOX_ITEM_READY,			/* → IN_FLIGHT (→ FETCHING first when its event is not in memory) */
	OUTBOX_ITEM_FETCHING,		/* → READY, or gone */
	OUTBOX_ITEM_WAITING,		/* behind another item of its key → READY, RETRY, HELD; or IN_FLIGHT together with that one */
	OUTBOX_ITEM_IN_FLIGHT,		/* → done, or back: WAITING, RETRY, HELD, READY (disabled by the answer, or a split batch) */
	OUTBOX_ITEM_RETRY,			/* until due → READY */
	OUTBOX_ITEM_HELD			/* dead, and holds back its key until an operator decides */
} OutboxItemState;

typedef struct OutboxLease OutboxLease;

/* One event for one subscription, not yet done. */
typedef struct OutboxItem
{
	OutboxLane *lane;
	pg_uuid_t	id;
	pg_uuid_t	log_id;
	OutboxItemState state;
	uint64		seq;			/* order of entering the lane; 0: read back from its row */
	Size		size;			/* of its body, while outstanding */
	bool		keyed;
	uint64		key_hash;
	struct OutboxKeyQueue *of_key;	/* the items of its key, while keyed */
	bool		row;			/* an exception: has a delivery row, the cursor may pass it */
	bool		inherited;		/* … from before this worker: its lane may not have read that far */
	bool		dead;			/* a dead letter that holds back its key */
	bool		withdrawn;		/* by an operator, while in flight: its outcome changes nothing any more */
	bool		seen;			/* by the resync that is going on */
	bool		replayed;		/* on behalf of a replay */
	bool		probe;			/* IN_FLIGHT: of an open breaker */
	OutboxGrant grant;			/* IN_FLIGHT: the slots it has */
	int			attempts;
	int			mishaps;		/* errors that kept its request from being made */
	int			together;		/* the largest batch it may be part of, after a split; 0: not split */
	TimestampTz entered_at;
	TimestampTz started_at;		/* of the attempt in flight */
	TimestampTz first_at;		/* of the first attempt; 0: none yet */
	TimestampTz next_at;		/* RETRY: when */
	OutboxLease *lease;			/* IN_FLIGHT, of a pull lane (lease.c) … */
	TimestampTz leased_until;	/* … and its end */

	OutboxChunk *chunk;			/* pinned; NULL: not in memory */
	const OutboxLoggedEvent *logged;
	int			index;			/* in its chunk: where the cursor stays while this is not done */
	OutboxSubscription *subscription;	/* IN_FLIGHT: pinned, what the request was made with */

	dlist_node	outstanding;	/* in log order, unless row */
	dlist_node	queue;			/* READY, RETRY: the lane's queue; FETCHING: everybody's; IN_FLIGHT: lease.c's lists */
	dlist_node	key_node;		/* among the items of its key */
	pairingheap_node due;		/* RETRY */
} OutboxItem;

struct OutboxLane
{
	OutboxSubscription *subscription;
	bool		dropped;		/* unsubscribed; freed when nothing is in flight */
	bool		disabled;		/* by its failures, until a reload says otherwise */
	bool		at_head;
	bool		slow;			/* fell off the head not long ago */
	bool		need_settled;	/* may meet events that have rows already … */
	HTAB	   *done_ahead;		/* … or had, until they were done; NULL: none */
	bool		marked;			/* its newest persisted cursor says "at head" … */
	OutboxPosition written;		/* … or this */
	bool		listed;			/* in the round of its party … */
	bool		aside;			/* … or beside it, for want of a slot */
	bool		active;			/* counted among those at work */
	bool		present;		/* in the configuration that is being taken over */
	TimestampTz fell_at;
	OutboxPosition position;	/* how far it has read, unless at_head */
	OutboxTick *own_start;		/* position.base is the start of another one, which sees less; NULL: it is its own */
	uint64		not_before;		/* a window from its start may only end at a later tick than this one */
	uint64		offset;			/* events passed, unless at_head */

	uint64		next_seq;
	uint64		max_done_seq;	/* highest seq of a done item … */
	uint64		marked_done_seq;	/* … as it was at a checkpoint (recorder.c) … */
	uint64		max_row_seq;	/* … and of one that became an exception */
	int			n_outstanding;
	Size		outstanding_bytes;
	int			n_rows;
	int			n_replayed;		/* of those: on behalf of a replay */
	int			in_flight;		/* items … */
	Size		flying_bytes;
	int			requests;		/* … and the requests they are in */
	int			failures;		/* requests that failed since one was delivered, retries of single events aside */
	int			fetching;
	dlist_head	outstanding;
	dlist_head	ready;
	dlist_head	retrying;
	OutboxParty *party;			/* with whom it takes turns */
	int			reserved;		/* slots of its party's reserve that it holds */
	dlist_node	round;			/* among the party's lanes with something to send, if listed */
	TimestampTz heard_at;		/* with requests in flight: since when nothing has been answered */
	bool		answers;		/* has answered something */
	OutboxBreaker breaker;
	OutboxBucket bucket;
	OutboxStreak streak;
	bool		streak_noted;	/* in the table */
	TimestampTz wake_at;		/* when it may send again, if there is a timer; 0: none */
	pairingheap_node wake;
	dlist_node	behind;			/* among the lanes that are not at the head */
	bool		tight;			/* at the head, with little room left */
	TimestampTz tight_at;
	dlist_node	tight_node;
	bool		lingers;		/* a batch is waiting for company … */
	TimestampTz ripe_at;		/* … until then */
	pairingheap_node linger_node;
	OutboxLaneStatus *status;
};

extern void outbox_lane_init(OutboxDatabase *database);

/* ---- lanes ---- */

/* A lane for a new subscription, at no position yet; it reads for itself until it is attached to the head. */
extern OutboxLane *outbox_lane_create(OutboxSubscription *subscription);

/* Unsubscribed: everything is dropped; the lane itself goes when nothing of it is in flight. */
extern void outbox_lane_drop(OutboxLane *lane);
extern void outbox_lane_free(OutboxLane *lane);

extern OutboxLane *outbox_lane_find(int32 subscription);
extern List *outbox_lane_all(void);
extern bool outbox_lane_is_any(void);

/* Those that are not at the head and have room. */
extern List *outbox_lane_hungry(void);

/* Is this event of the log an exception of the lane already, or was it, and is done?  A crash can leave rows that are ahead of the cursor. */
extern bool outbox_lane_is_settled(const OutboxLane *lane, const OutboxChunk *chunk, int index);

/* The head meets no more events that an earlier worker may have met. */
extern void outbox_lane_head_is_new(void);

/* It has had its turn to read: the others come first. */
extern void outbox_lane_was_fed(OutboxLane *lane);

extern bool outbox_lane_may_send(const OutboxLane *lane);
extern bool outbox_lane_has_room(const OutboxLane *lane);

/* Is there room for so much that reading a chunk is worth it? */
extern bool outbox_lane_is_hungry(const OutboxLane *lane);

/* Takes turns from now on if it has something to send and may, now or when its breaker or its rate limit lets it; or no longer. */
extern void outbox_lane_enlist(OutboxLane *lane);
extern void outbox_lane_enlist_ripe(OutboxLane *lane);	/* whatever batch_linger says */
extern void outbox_lane_delist(OutboxLane *lane);

/* Lanes whose time has come take turns.  When the next one's will; DT_NOEND: none waits. */
extern void outbox_lane_wake(TimestampTz now);
extern TimestampTz outbox_lane_next_wake(void);

/* The lane has read all that the head has, and follows it from now on; or it no longer does, and stays at this position. */
extern void outbox_lane_attach(OutboxLane *lane);
extern void outbox_lane_fall_off(OutboxLane *lane, const OutboxPosition *position);

/* Where a lane that reads for itself is, as who knows nothing of shared starts must know it. */
extern OutboxPosition outbox_lane_position(const OutboxLane *lane);

/* Begins at this position, whose base is a start that others share; own: what it really starts from, pinned by the caller, who gives that pin away. */
extern void outbox_lane_begin(OutboxLane *lane, const OutboxPosition *position, OutboxTick *own);

/* Did the lane's own start see what this transaction wrote, though its position's base did not? */
extern bool outbox_lane_is_before_start(const OutboxLane *lane, uint64 xid);

/* The head is at this offset. How many events of the log are behind a lane. */
extern void outbox_lane_head_at(uint64 offset);
extern uint64 outbox_lane_offset(const OutboxLane *lane);

/* May the head read on, or should it give full lanes a moment? */
extern bool outbox_lane_head_may_read(TimestampTz now);

/* Where the lane's cursor may be; false: at the head with nothing outstanding. */
extern bool outbox_lane_cursor(OutboxLane *lane, OutboxPosition *position);

/*
 * Makes items exceptions that had been overtaken when the mark was set, so that the cursor can pass them; at_once: all that have been overtaken, and what is in flight.  True: some have
 * been overtaken since the mark was set.
 */
extern bool outbox_lane_pass_overtaken(OutboxLane *lane, bool at_once);

/* Order per key was switched off: what waited behind another item waits no longer. */
extern void outbox_lane_unorder(OutboxLane *lane);

/* A lane that may not send gives its memory back to the log. */
extern void outbox_lane_shed(OutboxLane *lane);

/* ---- items ---- */

/* An event of a chunk enters a lane. */
extern void outbox_lane_enter(OutboxLane *lane, OutboxChunk *chunk, int index);

/* by_age: it was held back, and goes where its age puts it; else behind all others. */
extern void outbox_item_ready(OutboxItem *item, bool by_age);
extern void outbox_item_retry(OutboxItem *item);

/*
 * Leaves, ready or as the follower of one that leaves in the same request or lease: the next of its key that may go along, or NULL (its event may have to be fetched).  And comes
 * back undone: what `dead` and next_at say, as soon as nothing of its key is in flight.
 */
extern void outbox_item_fly(OutboxItem *item, TimestampTz now);
extern OutboxItem *outbox_item_follower(OutboxItem *item);
extern void outbox_item_land(OutboxItem *item);

/* Is it the first of its key, or has none? */
extern bool outbox_item_is_first(const OutboxItem *item);

/* Retries that are due become ready, batches that have waited long enough may go.  When that will be so next; DT_NOEND: nothing waits. */
extern void outbox_item_due(TimestampTz now);
extern TimestampTz outbox_item_next_due(void);

/* Lets go of the event in memory. */
extern void outbox_item_release(OutboxItem *item);

/* Delivered, dead, or dropped by an operator: done; the next of its key may go. Or just gone, without having been done. */
extern void outbox_item_finish(OutboxItem *item);
extern void outbox_item_free(OutboxItem *item);

/* Items done since this was last asked. */
extern int	outbox_item_done(void);

/* Notes the row of an item; known: it is there already. */
extern void outbox_item_note(OutboxItem *item, OutboxRowStatus status, const OutboxExchange *exchange, const char *reason,
							 bool known);

/* Makes an outstanding item an exception. */
extern void outbox_item_make_row(OutboxItem *item, OutboxRowStatus status, const OutboxExchange *exchange,
								 const char *reason);

/* An exception read back becomes an item (inherited: the lane may not have read that far); the one that is there already, or NULL; all of them (visit may free the one it sees). */
extern void outbox_item_take_over(OutboxLane *lane, const OutboxException *exception, bool inherited);
extern void outbox_item_set_replayed(OutboxItem *item, bool replayed);
extern OutboxItem *outbox_item_exception(int32 subscription, const pg_uuid_t *event_id);
extern void outbox_item_each_exception(void (*visit) (OutboxItem *item));

#endif							/* OUTBOX_LANE_H */

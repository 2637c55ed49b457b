/*
 * Subscriptions as the worker knows them: configuration read from the tables, and whether an event is for one of them.
 *
 * A configuration is never changed in place: a reload makes new ones, and requests in flight keep theirs by pinning it.
 */
#ifndef OUTBOX_SUBSCRIPTION_H
#define OUTBOX_SUBSCRIPTION_H

#include "breaker.h"
#include "filter.h"
#include "http.h"
#include "tick.h"

/* Which events; until: only for what this snapshot saw (an earlier rule), NULL: the current rule. */
typedef struct OutboxMatch
{
	char	  **types;
	int			n_types;
	bool		exact;			/* none of them has an asterisk … */
	uint64	   *type_hashes;	/* … and these are theirs (outbox_chunk_hash) */
	char	   *tenant;			/* NULL: every tenant's events */
	uint64		tenant_hash;
	JsonPath   *filter;			/* NULL: whatever the payload */
	OutboxSnapshot *until;
} OutboxMatch;

typedef struct OutboxSubscription
{
	MemoryContext context;
	MemoryContextCallback callback; /* wipes its secrets with the context */
	int			pins;

	int32		id;
	char	   *name;
	bool		pull;			/* drained by SQL: no endpoint */
	bool		active;			/* neither paused nor disabled */
	bool		unreadable;		/* its secrets cannot be read: nothing may be sent … */
	bool		was_unreadable; /* … and could not: it is disabled for that */
	bool		ordered;		/* ordering = key */
	bool		block_on_dead;
	int			max_in_flight;
	int			max_blocked;
	OutboxFormat format;
	int			batch_size;		/* events … */
	int			batch_bytes;	/* … and bytes of the body, at most */
	int64		batch_linger;	/* microseconds */
	double		rate_limit;		/* requests per second; 0: none */
	OutboxBreakerPolicy breaker;
	int64		disable_after;	/* microseconds; 0: never */
	TimestampTz failing_since;	/* as noted in the table; 0: not */
	TimestampTz state_since;	/* when it was paused, resumed, disabled */
	OutboxEndpoint endpoint;
	OutboxRetryPolicy retry;
	int			n_signers;
	OutboxSigner *signers[OUTBOX_MAX_SECRETS];
	int			n_headers;		/* sent with every request */
	OutboxHeader *headers;
	char	   *header_lines;	/* what they point into; wiped with it */
	Size		header_size;
	TimestampTz secrets_until;	/* when the next secret expires; DT_NOEND: none does */

	OutboxMatch match;
	int			n_earlier;
	OutboxMatch *earlier;		/* oldest first */

	/* where it starts when it has no cursor */
	int64		start_epoch;	/* the installation that start and start_after belong to */
	OutboxSnapshot *start;		/* NULL: nothing is excluded */
	bool		has_start_after;
	pg_uuid_t	start_after;
} OutboxSubscription;

/* Reason of a subscription that is disabled because its secrets cannot be read.  It goes on by itself when they can. */
#define OUTBOX_UNREADABLE "secret unreadable"

/* All subscriptions, in CurrentMemoryContext's list; each pinned once.  In a transaction with SPI connected. */
extern List *outbox_subscription_load(int64 epoch);

extern OutboxSubscription *outbox_subscription_pin(OutboxSubscription *subscription);
extern void outbox_subscription_unpin(OutboxSubscription *subscription);

/* Drops earlier matching rules that apply only to what this snapshot has seen; true if there were any. */
extern bool outbox_subscription_forget(OutboxSubscription *subscription, const OutboxSnapshot *passed);

/* Is this event of a chunk for it? Does not look at positions.  Raises nothing; a filter that fails on the event counts as no. */
extern bool outbox_subscription_wants(const OutboxSubscription *subscription, OutboxChunk *chunk, int index);

/* Does it look at bodies: to send them, or through a filter? */
extern bool outbox_subscription_needs_bodies(const OutboxSubscription *subscription);

/* Could one of the chunk's events be?  False: surely none. */
extern bool outbox_subscription_may_want(const OutboxSubscription *subscription, const OutboxChunk *chunk);

#endif							/* OUTBOX_SUBSCRIPTION_H */

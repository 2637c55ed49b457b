/*
 * Turns.
 *
 * Who takes turns is a party: a tenant, or a lane without one.  A party with something to send stands in the round; in its turn, the first of its lanes that may have a slot sends one
 * request.  All of it is O(1) a request: a lane or party that cannot have a slot now is set aside where it is not looked at again before that has changed.
 *
 *   lane:  in its party's `lanes` → sends, or → `aside`: needs a slot of a common half → sends when there is one, or back to `lanes` when a request of its own ends;
 *          or → `newcomers`, if nothing is known of it: needs one of those that newcomers may have
 *   party: in the round → behind the others after its turn; → parked: until the server has a common slot, or one for newcomers; or nowhere: until a lane is enlisted or a
 *          request of its own ends
 */
#include "postgres.h"

#include <limits.h>

#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "lane.h"
#include "settings.h"
#include "turns.h"

#define TENANT_SIZE 129			/* a tenant's name and its NUL */
#define PATIENCE_MS 1000		/* who has been silent for longer has no claim on the reserve */

typedef enum PartyPlace
{
	PARTY_NOWHERE,
	PARTY_ROUND,
	PARTY_PARKED,
	PARTY_PARKED_NEW,
	PARTY_PLACES
} PartyPlace;

struct OutboxParty
{
	char		tenant[TENANT_SIZE];	/* the hash key; empty: a lane of its own, not in the hash */
	int			n_lanes;
	OutboxPool	pool;			/* its slots, among its lanes */
	int			reserved;		/* slots of the server's reserve that it holds */
	bool		active;			/* counted as a member of the server's pool */
	PartyPlace	place;
	dlist_node	node;			/* in that place */
	dlist_head	lanes;
	dlist_head	aside;
	dlist_head	newcomers;
};

static HTAB *parties;
static OutboxPool server;
static dlist_head places[PARTY_PLACES];	/* zeros are empty lists */

/* ---- parties ---- */

static void
init_party(OutboxParty *party)
{
	Size		key = offsetof(OutboxParty, n_lanes);

	memset((char *) party + key, 0, sizeof(OutboxParty) - key);
	dlist_init(&party->lanes);
	dlist_init(&party->aside);
	dlist_init(&party->newcomers);
}

static OutboxParty *
find_party(const char *tenant)
{
	OutboxParty *party;
	bool		found;

	if (tenant == NULL || tenant[0] == '\0')
	{
		party = MemoryContextAllocZero(TopMemoryContext, sizeof(OutboxParty));
		init_party(party);
		return party;
	}
	if (parties == NULL)
	{
		HASHCTL		control = {.keysize = TENANT_SIZE, .entrysize = sizeof(OutboxParty)};

		parties = hash_create("outbox turns", 128, &control, HASH_ELEM | HASH_STRINGS);
	}
	party = hash_search(parties, tenant, HASH_ENTER, &found);
	if (!found)
		init_party(party);
	return party;
}

static void
put(OutboxParty *party, PartyPlace place)
{
	if (party->place == place)
		return;
	if (party->place != PARTY_NOWHERE)
		dlist_delete(&party->node);
	if (place != PARTY_NOWHERE)
		dlist_push_tail(&places[place], &party->node);
	party->place = place;
}

static bool
has_lanes(OutboxParty *party)
{
	return !dlist_is_empty(&party->lanes) || !dlist_is_empty(&party->aside) || !dlist_is_empty(&party->newcomers);
}

static void
free_if_unused(OutboxParty *party)
{
	if (party->n_lanes > 0 || party->pool.common + party->pool.reserved > 0)
		return;
	Assert(!has_lanes(party) && !party->active);
	put(party, PARTY_NOWHERE);
	if (party->tenant[0] == '\0')
		pfree(party);
	else
		hash_search(parties, party->tenant, HASH_REMOVE, NULL);
}

static int
limit_of(const OutboxParty *party)
{
	return party->tenant[0] == '\0' ? INT_MAX : outbox_max_in_flight_per_tenant;
}

/* Counts the lane among those at work, or no longer. */
static void
settle(OutboxLane *lane)
{
	OutboxParty *party = lane->party;
	bool		active = lane->listed || lane->requests > 0;

	if (party == NULL || active == lane->active)
		return;
	lane->active = active;
	party->pool.members += active ? 1 : -1;
	if (party->active != (party->pool.members > 0))
	{
		party->active = !party->active;
		server.members += party->active ? 1 : -1;
	}
}

/* ---- lanes ---- */

void
outbox_turns_enlist(OutboxLane *lane)
{
	if (lane->listed)
		return;
	dlist_push_tail(&lane->party->lanes, &lane->round);
	lane->listed = true;
	settle(lane);
	put(lane->party, PARTY_ROUND);
}

void
outbox_turns_delist(OutboxLane *lane)
{
	if (!lane->listed)
		return;
	dlist_delete(&lane->round);
	lane->listed = lane->aside = false;
	settle(lane);
	if (!has_lanes(lane->party))
		put(lane->party, PARTY_NOWHERE);
}

void
outbox_turns_leave(OutboxLane *lane)
{
	OutboxParty *party = lane->party;

	outbox_turns_delist(lane);
	if (lane->active)
	{
		int			requests = lane->requests;

		lane->requests = 0;
		settle(lane);
		lane->requests = requests;
	}
	lane->party = NULL;
	party->n_lanes--;
	free_if_unused(party);
}

void
outbox_turns_join(OutboxLane *lane)
{
	const char *tenant = lane->subscription->match.tenant;

	if (lane->party != NULL)
	{
		if (strcmp(lane->party->tenant, tenant == NULL ? "" : tenant) == 0)
			return;
		outbox_turns_leave(lane);
	}
	lane->party = find_party(tenant);
	lane->party->n_lanes++;
	settle(lane);
}

OutboxTrust
outbox_turns_trust(const OutboxLane *lane, TimestampTz now)
{
	if (lane->breaker.state != OUTBOX_BREAKER_CLOSED || lane->breaker.failures > 0 || lane->breaker.width > 0 ||
		(lane->requests > 0 && TimestampDifferenceExceeds(lane->heard_at, now, PATIENCE_MS)))
		return OUTBOX_SILENT;
	if (lane->answers)
		return OUTBOX_ANSWERS;
	return lane->requests == 0 ? OUTBOX_UNKNOWN : OUTBOX_SILENT;	/* the first answer comes before the second question */
}

/* ---- the next ---- */

/* Has the server a slot for one of whom nothing is known? */
static bool
newcomers_may(int max_in_flight)
{
	return outbox_pool_offer(&server, max_in_flight, 0, OUTBOX_UNKNOWN) != OUTBOX_SLOT_NONE;
}

static void
unpark(PartyPlace place)
{
	if (!dlist_is_empty(&places[place]))
		put(dlist_head_element(OutboxParty, node, &places[place]), PARTY_ROUND);
}

/* The lane of this party that may send now; NULL: none may. */
static OutboxLane *
choose(OutboxParty *party, int max_in_flight, TimestampTz now, OutboxGrant *grant)
{
	int			limit = limit_of(party);
	bool		common = outbox_pool_has_common(&server, max_in_flight);

	*grant = (OutboxGrant) {.party = party};
	if (common && !dlist_is_empty(&party->aside) && outbox_pool_has_common(&party->pool, limit))
		return dlist_head_element(OutboxLane, round, &party->aside);
	if (!outbox_pool_has_slot(&party->pool, limit))
		return NULL;
	if (!dlist_is_empty(&party->newcomers) && newcomers_may(max_in_flight) && outbox_pool_offer(&party->pool, limit, 0, OUTBOX_UNKNOWN) != OUTBOX_SLOT_NONE)
	{
		OutboxLane *lane = dlist_head_element(OutboxLane, round, &party->newcomers);

		dlist_delete(&lane->round);
		dlist_push_head(&party->lanes, &lane->round);
		lane->aside = false;
	}
	while (!dlist_is_empty(&party->lanes) && (common || party->reserved < outbox_pool_share(&server, max_in_flight)))
	{
		OutboxLane *lane = dlist_head_element(OutboxLane, round, &party->lanes);
		OutboxTrust trust = outbox_turns_trust(lane, now);
		OutboxSlot	slot = outbox_pool_offer(&server, max_in_flight, party->reserved, trust);
		OutboxSlot	lane_slot = outbox_pool_offer(&party->pool, limit, lane->reserved, trust);

		if (slot != OUTBOX_SLOT_NONE && lane_slot != OUTBOX_SLOT_NONE)
		{
			grant->reserved = slot == OUTBOX_SLOT_RESERVED;
			grant->lane_reserved = lane_slot == OUTBOX_SLOT_RESERVED;
			return lane;
		}
		dlist_delete(&lane->round);
		dlist_push_tail(trust == OUTBOX_UNKNOWN ? &party->newcomers : &party->aside, &lane->round);
		lane->aside = true;
	}
	return NULL;
}

OutboxLane *
outbox_turns_next(int max_in_flight, TimestampTz now, OutboxGrant *grant)
{
	while (outbox_pool_has_slot(&server, max_in_flight))
	{
		bool		common = outbox_pool_has_common(&server, max_in_flight);
		bool		newcomers = newcomers_may(max_in_flight);
		OutboxParty *party;
		OutboxLane *lane;

		if (common)
			unpark(PARTY_PARKED);
		if (newcomers && !dlist_is_empty(&places[PARTY_PARKED_NEW]))
		{
			/* before those who had their turn: or these would take with their second requests what newcomers need for their first */
			unpark(PARTY_PARKED_NEW);
			dlist_move_head(&places[PARTY_ROUND], dlist_tail_node(&places[PARTY_ROUND]));
		}
		if (dlist_is_empty(&places[PARTY_ROUND]))
			break;
		party = dlist_head_element(OutboxParty, node, &places[PARTY_ROUND]);
		put(party, PARTY_NOWHERE);
		lane = choose(party, max_in_flight, now, grant);
		if (lane != NULL)
		{
			outbox_turns_delist(lane);
			if (has_lanes(party))
				put(party, PARTY_ROUND);
			return lane;
		}
		if (!newcomers && !dlist_is_empty(&party->newcomers))
			put(party, PARTY_PARKED_NEW);
		else if (!common && has_lanes(party))
			put(party, PARTY_PARKED);
	}
	return NULL;
}

bool
outbox_turns_wait(int max_in_flight)
{
	if (!outbox_pool_has_slot(&server, max_in_flight))
		return false;
	return !dlist_is_empty(&places[PARTY_ROUND]) ||
		(!dlist_is_empty(&places[PARTY_PARKED]) && outbox_pool_has_common(&server, max_in_flight)) ||
		(!dlist_is_empty(&places[PARTY_PARKED_NEW]) && newcomers_may(max_in_flight));
}

/* ---- requests ---- */

void
outbox_turns_begin(OutboxLane *lane, const OutboxGrant *grant)
{
	OutboxParty *party = grant->party;

	lane->requests++;
	lane->reserved += grant->lane_reserved;
	party->reserved += grant->reserved;
	if (grant->reserved)
		server.reserved++;
	else
		server.common++;
	if (grant->lane_reserved)
		party->pool.reserved++;
	else
		party->pool.common++;
	settle(lane);
}

void
outbox_turns_end(OutboxLane *lane, const OutboxGrant *grant)
{
	OutboxParty *party = grant->party;

	lane->requests--;
	lane->reserved -= grant->lane_reserved;
	party->reserved -= grant->reserved;
	if (grant->reserved)
		server.reserved--;
	else
		server.common--;
	if (grant->lane_reserved)
		party->pool.reserved--;
	else
		party->pool.common--;
	settle(lane);
	if (lane->aside)
	{
		dlist_delete(&lane->round);
		dlist_push_tail(&lane->party->lanes, &lane->round);
		lane->aside = false;
		put(lane->party, PARTY_ROUND);
	}
	if (has_lanes(party))
		put(party, PARTY_ROUND);
	free_if_unused(party);
}

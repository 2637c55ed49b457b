/*
 * The bell and the worker's sleep (src/bell.c, src/delivery/worker.c).
 *
 * A producer commits, which makes its event visible, then raises the reasons, unless it sees that they are, then sets the latch of whoever is the worker.  The worker attaches, and
 * then goes round: takes the reasons, looks if there are any, sleeps until its latch is set, resets it.  It may die and be started anew.
 *
 * Claim: when nobody can go on, no visible event is unseen: no ring is lost, and no timer is needed for it.
 *
 * Without one of these the claim fails:
 *   RING_EARLY    the bell is rung before the event is visible
 *   NO_BARRIER    whether the reasons are raised already is read before the event is visible
 *   RESET_LATE    the latch is reset after the reasons were taken
 *   LATCH_FIRST   the latch is set before the reasons are raised
 *   NO_FIRST_LOOK a worker that has just attached looks only if somebody rang since
 */
#define PRODUCERS 3

byte visible, seen;				/* events, counted */
bool rung, latch;
bool attached;					/* the slot names a worker */
byte deaths = 1;				/* the worker may still die so often */

inline set_latch() {
	if
	:: attached -> latch = true
	:: else
	fi
}

proctype producer() {
	bool raised;

#ifdef NO_BARRIER
	raised = rung;
#endif
#ifdef RING_EARLY
	rung = true;
	set_latch();
	visible++
#else
	visible++;
#ifdef LATCH_FIRST
	set_latch();
	rung = true
#else
#ifndef NO_BARRIER
	raised = rung;
#endif
	if
	:: raised
	:: else -> rung = true
	fi;
	set_latch()
#endif
#endif
}

proctype worker() {
	bool look;

start:
	attached = true;
#ifdef NO_FIRST_LOOK
	look = false;
#else
	look = true;
#endif
	do
	:: true ->
		atomic { look = look || rung; rung = false };
		if
		:: d_step { deaths > 0 -> deaths--; attached = false; latch = false }; goto start
		:: true
		fi;
		if
		:: look -> seen = visible; look = false
		:: else
		fi;
#ifdef RESET_LATE
		latch = false
#endif
end:	latch;
#ifndef RESET_LATE
		latch = false
#endif
	od
}

init {
	byte i;

	atomic {
		run worker();
		for (i : 1 .. PRODUCERS) { run producer() }
	}
	timeout;
	assert(seen == visible)
}

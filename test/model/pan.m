#define rand	pan_rand
#define pthread_equal(a,b)	((a)==(b))
#if defined(HAS_CODE) && defined(VERBOSE)
	#ifdef BFS_PAR
		bfs_printf("Pr: %d Tr: %d\n", II, t->forw);
	#else
		cpu_printf("Pr: %d Tr: %d\n", II, t->forw);
	#endif
#endif
	switch (t->forw) {
	default: Uerror("bad forward move");
	case 0:	/* if without executable clauses */
		continue;
	case 1: /* generic 'goto' or 'skip' */
		IfNotBlocked
		_m = 3; goto P999;
	case 2: /* generic 'else' */
		IfNotBlocked
		if (trpt->o_pm&1) continue;
		_m = 3; goto P999;

		 /* CLAIM all_read */
	case 3: // STATE 1 - _spin_nvr.tmp:3 - [((!(!((ended==2)))&&!((base==committed))))] (0:0:0 - 1)
		
#if defined(VERI) && !defined(NP)
#if NCLAIMS>1
		{	static int reported1 = 0;
			if (verbose && !reported1)
			{	int nn = (int) ((Pclaim *)pptr(0))->_n;
				printf("depth %ld: Claim %s (%d), state %d (line %d)\n",
					depth, procname[spin_c_typ[nn]], nn, (int) ((Pclaim *)pptr(0))->_p, src_claim[ (int) ((Pclaim *)pptr(0))->_p ]);
				reported1 = 1;
				fflush(stdout);
		}	}
#else
		{	static int reported1 = 0;
			if (verbose && !reported1)
			{	printf("depth %d: Claim, state %d (line %d)\n",
					(int) depth, (int) ((Pclaim *)pptr(0))->_p, src_claim[ (int) ((Pclaim *)pptr(0))->_p ]);
				reported1 = 1;
				fflush(stdout);
		}	}
#endif
#endif
		reached[5][1] = 1;
		if (!(( !( !((((int)now.ended)==2)))&& !((((int)now.base)==((int)now.committed))))))
			continue;
		_m = 3; goto P999; /* 0 */
	case 4: // STATE 8 - _spin_nvr.tmp:8 - [(!((base==committed)))] (0:0:0 - 1)
		
#if defined(VERI) && !defined(NP)
#if NCLAIMS>1
		{	static int reported8 = 0;
			if (verbose && !reported8)
			{	int nn = (int) ((Pclaim *)pptr(0))->_n;
				printf("depth %ld: Claim %s (%d), state %d (line %d)\n",
					depth, procname[spin_c_typ[nn]], nn, (int) ((Pclaim *)pptr(0))->_p, src_claim[ (int) ((Pclaim *)pptr(0))->_p ]);
				reported8 = 1;
				fflush(stdout);
		}	}
#else
		{	static int reported8 = 0;
			if (verbose && !reported8)
			{	printf("depth %d: Claim, state %d (line %d)\n",
					(int) depth, (int) ((Pclaim *)pptr(0))->_p, src_claim[ (int) ((Pclaim *)pptr(0))->_p ]);
				reported8 = 1;
				fflush(stdout);
		}	}
#endif
#endif
		reached[5][8] = 1;
		if (!( !((((int)now.base)==((int)now.committed)))))
			continue;
		_m = 3; goto P999; /* 0 */
	case 5: // STATE 13 - _spin_nvr.tmp:10 - [-end-] (0:0:0 - 1)
		
#if defined(VERI) && !defined(NP)
#if NCLAIMS>1
		{	static int reported13 = 0;
			if (verbose && !reported13)
			{	int nn = (int) ((Pclaim *)pptr(0))->_n;
				printf("depth %ld: Claim %s (%d), state %d (line %d)\n",
					depth, procname[spin_c_typ[nn]], nn, (int) ((Pclaim *)pptr(0))->_p, src_claim[ (int) ((Pclaim *)pptr(0))->_p ]);
				reported13 = 1;
				fflush(stdout);
		}	}
#else
		{	static int reported13 = 0;
			if (verbose && !reported13)
			{	printf("depth %d: Claim, state %d (line %d)\n",
					(int) depth, (int) ((Pclaim *)pptr(0))->_p, src_claim[ (int) ((Pclaim *)pptr(0))->_p ]);
				reported13 = 1;
				fflush(stdout);
		}	}
#endif
#endif
		reached[5][13] = 1;
		if (!delproc(1, II)) continue;
		_m = 3; goto P999; /* 0 */

		 /* PROC :init: */
	case 6: // STATE 1 - ring.pml:230 - [(run producer(0))] (0:0:0 - 1)
		IfNotBlocked
		reached[4][1] = 1;
		if (!(addproc(II, 1, 0, 0)))
			continue;
		_m = 3; goto P999; /* 0 */
	case 7: // STATE 2 - ring.pml:231 - [(run producer(2))] (0:0:0 - 1)
		IfNotBlocked
		reached[4][2] = 1;
		if (!(addproc(II, 1, 0, 2)))
			continue;
		_m = 3; goto P999; /* 0 */
	case 8: // STATE 3 - ring.pml:232 - [(run worker())] (0:0:0 - 1)
		IfNotBlocked
		reached[4][3] = 1;
		if (!(addproc(II, 1, 1, 0)))
			continue;
		_m = 3; goto P999; /* 0 */
	case 9: // STATE 4 - ring.pml:233 - [(run maintenance())] (0:0:0 - 1)
		IfNotBlocked
		reached[4][4] = 1;
		if (!(addproc(II, 1, 2, 0)))
			continue;
		_m = 3; goto P999; /* 0 */
	case 10: // STATE 5 - ring.pml:234 - [(run crash())] (0:0:0 - 1)
		IfNotBlocked
		reached[4][5] = 1;
		if (!(addproc(II, 1, 3, 0)))
			continue;
		_m = 3; goto P999; /* 0 */
	case 11: // STATE 7 - ring.pml:236 - [-end-] (0:0:0 - 1)
		IfNotBlocked
		reached[4][7] = 1;
		if (!delproc(1, II)) continue;
		_m = 3; goto P999; /* 0 */

		 /* PROC crash */
	case 12: // STATE 1 - ring.pml:201 - [at = 1] (0:0:1 - 1)
		IfNotBlocked
		reached[3][1] = 1;
		(trpt+1)->bup.oval = ((int)((P3 *)_this)->at);
		((P3 *)_this)->at = 1;
#ifdef VAR_RANGES
		logval("crash:at", ((int)((P3 *)_this)->at));
#endif
		;
		_m = 3; goto P999; /* 0 */
	case 13: // STATE 2 - ring.pml:201 - [((at<=1))] (0:0:0 - 1)
		IfNotBlocked
		reached[3][2] = 1;
		if (!((((int)((P3 *)_this)->at)<=1)))
			continue;
		_m = 3; goto P999; /* 0 */
	case 14: // STATE 3 - ring.pml:203 - [((ended<2))] (23:0:4 - 1)
		IfNotBlocked
		reached[3][3] = 1;
		if (!((((int)now.ended)<2)))
			continue;
		/* merge: boot = (boot+1)(23, 4, 23) */
		reached[3][4] = 1;
		(trpt+1)->bup.ovals = grab_ints(4);
		(trpt+1)->bup.ovals[0] = ((int)now.boot);
		now.boot = (((int)now.boot)+1);
#ifdef VAR_RANGES
		logval("boot", ((int)now.boot));
#endif
		;
		/* merge: highest = 0(23, 5, 23) */
		reached[3][5] = 1;
		(trpt+1)->bup.ovals[1] = ((int)((P3 *)_this)->highest);
		((P3 *)_this)->highest = 0;
#ifdef VAR_RANGES
		logval("crash:highest", ((int)((P3 *)_this)->highest));
#endif
		;
		/* merge: current = 0(23, 6, 23) */
		reached[3][6] = 1;
		(trpt+1)->bup.ovals[2] = ((int)now.current);
		now.current = 0;
#ifdef VAR_RANGES
		logval("current", ((int)now.current));
#endif
		;
		/* merge: i = 0(23, 7, 23) */
		reached[3][7] = 1;
		(trpt+1)->bup.ovals[3] = ((int)((P3 *)_this)->i);
		((P3 *)_this)->i = 0;
#ifdef VAR_RANGES
		logval("crash:i", ((int)((P3 *)_this)->i));
#endif
		;
		/* merge: .(goto)(0, 24, 23) */
		reached[3][24] = 1;
		;
		_m = 3; goto P999; /* 5 */
	case 15: // STATE 8 - ring.pml:207 - [((i<=(3-1)))] (18:0:5 - 1)
		IfNotBlocked
		reached[3][8] = 1;
		if (!((((int)((P3 *)_this)->i)<=(3-1))))
			continue;
		/* merge: writers[i] = 0(18, 9, 18) */
		reached[3][9] = 1;
		(trpt+1)->bup.ovals = grab_ints(5);
		(trpt+1)->bup.ovals[0] = ((int)now.writers[ Index(((int)((P3 *)_this)->i), 3) ]);
		now.writers[ Index(((P3 *)_this)->i, 3) ] = 0;
#ifdef VAR_RANGES
		logval("writers[crash:i]", ((int)now.writers[ Index(((int)((P3 *)_this)->i), 3) ]));
#endif
		;
		/* merge: readers[i] = 0(18, 10, 18) */
		reached[3][10] = 1;
		(trpt+1)->bup.ovals[1] = ((int)now.readers[ Index(((int)((P3 *)_this)->i), 3) ]);
		now.readers[ Index(((P3 *)_this)->i, 3) ] = 0;
#ifdef VAR_RANGES
		logval("readers[crash:i]", ((int)now.readers[ Index(((int)((P3 *)_this)->i), 3) ]));
#endif
		;
		/* merge: exclusive[i] = 0(18, 11, 18) */
		reached[3][11] = 1;
		(trpt+1)->bup.ovals[2] = ((int)now.exclusive[ Index(((int)((P3 *)_this)->i), 3) ]);
		now.exclusive[ Index(((P3 *)_this)->i, 3) ] = 0;
#ifdef VAR_RANGES
		logval("exclusive[crash:i]", ((int)now.exclusive[ Index(((int)((P3 *)_this)->i), 3) ]));
#endif
		;
		/* merge: sealed[i] = 0(18, 12, 18) */
		reached[3][12] = 1;
		(trpt+1)->bup.ovals[3] = ((int)now.sealed[ Index(((int)((P3 *)_this)->i), 3) ]);
		now.sealed[ Index(((P3 *)_this)->i, 3) ] = 0;
#ifdef VAR_RANGES
		logval("sealed[crash:i]", ((int)now.sealed[ Index(((int)((P3 *)_this)->i), 3) ]));
#endif
		;
		/* merge: seal_tick[i] = 0(18, 13, 18) */
		reached[3][13] = 1;
		(trpt+1)->bup.ovals[4] = ((int)now.seal_tick[ Index(((int)((P3 *)_this)->i), 3) ]);
		now.seal_tick[ Index(((P3 *)_this)->i, 3) ] = 0;
#ifdef VAR_RANGES
		logval("seal_tick[crash:i]", ((int)now.seal_tick[ Index(((int)((P3 *)_this)->i), 3) ]));
#endif
		;
		_m = 3; goto P999; /* 5 */
	case 16: // STATE 14 - ring.pml:211 - [((newest[i]>highest))] (23:0:4 - 1)
		IfNotBlocked
		reached[3][14] = 1;
		if (!((((int)now.newest[ Index(((int)((P3 *)_this)->i), 3) ])>((int)((P3 *)_this)->highest))))
			continue;
		if (TstOnly) return 1; /* TT */
		/* dead 1: highest */  (trpt+1)->bup.ovals = grab_ints(4);
		(trpt+1)->bup.ovals[0] = ((P3 *)_this)->highest;
#ifdef HAS_CODE
		if (!readtrail)
#endif
			((P3 *)_this)->highest = 0;
		/* merge: highest = newest[i](23, 15, 23) */
		reached[3][15] = 1;
		(trpt+1)->bup.ovals[1] = ((int)((P3 *)_this)->highest);
		((P3 *)_this)->highest = ((int)now.newest[ Index(((int)((P3 *)_this)->i), 3) ]);
#ifdef VAR_RANGES
		logval("crash:highest", ((int)((P3 *)_this)->highest));
#endif
		;
		/* merge: current = i(23, 16, 23) */
		reached[3][16] = 1;
		(trpt+1)->bup.ovals[2] = ((int)now.current);
		now.current = ((int)((P3 *)_this)->i);
#ifdef VAR_RANGES
		logval("current", ((int)now.current));
#endif
		;
		/* merge: .(goto)(23, 19, 23) */
		reached[3][19] = 1;
		;
		/* merge: i = (i+1)(23, 20, 23) */
		reached[3][20] = 1;
		(trpt+1)->bup.ovals[3] = ((int)((P3 *)_this)->i);
		((P3 *)_this)->i = (((int)((P3 *)_this)->i)+1);
#ifdef VAR_RANGES
		logval("crash:i", ((int)((P3 *)_this)->i));
#endif
		;
		/* merge: .(goto)(0, 24, 23) */
		reached[3][24] = 1;
		;
		_m = 3; goto P999; /* 5 */
	case 17: // STATE 20 - ring.pml:207 - [i = (i+1)] (0:23:1 - 3)
		IfNotBlocked
		reached[3][20] = 1;
		(trpt+1)->bup.oval = ((int)((P3 *)_this)->i);
		((P3 *)_this)->i = (((int)((P3 *)_this)->i)+1);
#ifdef VAR_RANGES
		logval("crash:i", ((int)((P3 *)_this)->i));
#endif
		;
		/* merge: .(goto)(0, 24, 23) */
		reached[3][24] = 1;
		;
		_m = 3; goto P999; /* 1 */
	case 18: // STATE 26 - ring.pml:215 - [base = cursor] (0:36:4 - 3)
		IfNotBlocked
		reached[3][26] = 1;
		(trpt+1)->bup.ovals = grab_ints(4);
		(trpt+1)->bup.ovals[0] = ((int)now.base);
		now.base = ((int)now.cursor);
#ifdef VAR_RANGES
		logval("base", ((int)now.base));
#endif
		;
		/* merge: base_tick = cursor_tick(36, 27, 36) */
		reached[3][27] = 1;
		(trpt+1)->bup.ovals[1] = ((int)now.base_tick);
		now.base_tick = ((int)now.cursor_tick);
#ifdef VAR_RANGES
		logval("base_tick", ((int)now.base_tick));
#endif
		;
		/* merge: tick = cursor_tick(36, 28, 36) */
		reached[3][28] = 1;
		(trpt+1)->bup.ovals[2] = ((int)now.tick);
		now.tick = ((int)now.cursor_tick);
#ifdef VAR_RANGES
		logval("tick", ((int)now.tick));
#endif
		;
		/* merge: .(goto)(36, 32, 36) */
		reached[3][32] = 1;
		;
		/* merge: at = (at+1)(36, 33, 36) */
		reached[3][33] = 1;
		(trpt+1)->bup.ovals[3] = ((int)((P3 *)_this)->at);
		((P3 *)_this)->at = (((int)((P3 *)_this)->at)+1);
#ifdef VAR_RANGES
		logval("crash:at", ((int)((P3 *)_this)->at));
#endif
		;
		/* merge: .(goto)(0, 37, 36) */
		reached[3][37] = 1;
		;
		_m = 3; goto P999; /* 5 */
	case 19: // STATE 30 - ring.pml:223 - [(1)] (36:0:1 - 1)
		IfNotBlocked
		reached[3][30] = 1;
		if (!(1))
			continue;
		/* merge: .(goto)(36, 32, 36) */
		reached[3][32] = 1;
		;
		/* merge: at = (at+1)(36, 33, 36) */
		reached[3][33] = 1;
		(trpt+1)->bup.oval = ((int)((P3 *)_this)->at);
		((P3 *)_this)->at = (((int)((P3 *)_this)->at)+1);
#ifdef VAR_RANGES
		logval("crash:at", ((int)((P3 *)_this)->at));
#endif
		;
		/* merge: .(goto)(0, 37, 36) */
		reached[3][37] = 1;
		;
		_m = 3; goto P999; /* 3 */
	case 20: // STATE 33 - ring.pml:201 - [at = (at+1)] (0:36:1 - 3)
		IfNotBlocked
		reached[3][33] = 1;
		(trpt+1)->bup.oval = ((int)((P3 *)_this)->at);
		((P3 *)_this)->at = (((int)((P3 *)_this)->at)+1);
#ifdef VAR_RANGES
		logval("crash:at", ((int)((P3 *)_this)->at));
#endif
		;
		/* merge: .(goto)(0, 37, 36) */
		reached[3][37] = 1;
		;
		_m = 3; goto P999; /* 1 */
	case 21: // STATE 39 - ring.pml:226 - [-end-] (0:0:0 - 3)
		IfNotBlocked
		reached[3][39] = 1;
		if (!delproc(1, II)) continue;
		_m = 3; goto P999; /* 0 */

		 /* PROC maintenance */
	case 22: // STATE 1 - ring.pml:148 - [((rows[current]!=0))] (0:0:0 - 1)
		IfNotBlocked
		reached[2][1] = 1;
		if (!((((int)now.rows[ Index(((int)now.current), 3) ])!=0)))
			continue;
		_m = 3; goto P999; /* 0 */
	case 23: // STATE 48 - ring.pml:193 - [((boot!=my_boot))] (0:0:1 - 27)
		IfNotBlocked
		reached[2][48] = 1;
		if (!((((int)now.boot)!=((int)((P2 *)_this)->my_boot))))
			continue;
		if (TstOnly) return 1; /* TT */
		/* dead 1: my_boot */  (trpt+1)->bup.oval = ((P2 *)_this)->my_boot;
#ifdef HAS_CODE
		if (!readtrail)
#endif
			((P2 *)_this)->my_boot = 0;
		_m = 3; goto P999; /* 0 */
	case 24: // STATE 49 - ring.pml:193 - [my_boot = boot] (0:0:1 - 1)
		IfNotBlocked
		reached[2][49] = 1;
		(trpt+1)->bup.oval = ((int)((P2 *)_this)->my_boot);
		((P2 *)_this)->my_boot = ((int)now.boot);
#ifdef VAR_RANGES
		logval("maintenance:my_boot", ((int)((P2 *)_this)->my_boot));
#endif
		;
		_m = 3; goto P999; /* 0 */
	case 25: // STATE 2 - ring.pml:149 - [next = 0] (0:0:1 - 1)
		IfNotBlocked
		reached[2][2] = 1;
		(trpt+1)->bup.oval = ((int)((P2 *)_this)->next);
		((P2 *)_this)->next = 0;
#ifdef VAR_RANGES
		logval("maintenance:next", ((int)((P2 *)_this)->next));
#endif
		;
		_m = 3; goto P999; /* 0 */
	case 26: // STATE 3 - ring.pml:151 - [((next==3))] (0:0:0 - 1)
		IfNotBlocked
		reached[2][3] = 1;
		if (!((((int)((P2 *)_this)->next)==3)))
			continue;
		_m = 3; goto P999; /* 0 */
	case 27: // STATE 5 - ring.pml:152 - [(((next<3)&&((next==current)||(rows[next]!=0))))] (0:0:0 - 1)
		IfNotBlocked
		reached[2][5] = 1;
		if (!(((((int)((P2 *)_this)->next)<3)&&((((int)((P2 *)_this)->next)==((int)now.current))||(((int)now.rows[ Index(((int)((P2 *)_this)->next), 3) ])!=0)))))
			continue;
		_m = 3; goto P999; /* 0 */
	case 28: // STATE 6 - ring.pml:152 - [next = (next+1)] (0:0:1 - 1)
		IfNotBlocked
		reached[2][6] = 1;
		(trpt+1)->bup.oval = ((int)((P2 *)_this)->next);
		((P2 *)_this)->next = (((int)((P2 *)_this)->next)+1);
#ifdef VAR_RANGES
		logval("maintenance:next", ((int)((P2 *)_this)->next));
#endif
		;
		_m = 3; goto P999; /* 0 */
	case 29: // STATE 12 - ring.pml:156 - [((next==3))] (0:0:1 - 1)
		IfNotBlocked
		reached[2][12] = 1;
		if (!((((int)((P2 *)_this)->next)==3)))
			continue;
		if (TstOnly) return 1; /* TT */
		/* dead 1: next */  (trpt+1)->bup.oval = ((P2 *)_this)->next;
#ifdef HAS_CODE
		if (!readtrail)
#endif
			((P2 *)_this)->next = 0;
		_m = 3; goto P999; /* 0 */
	case 30: // STATE 14 - ring.pml:162 - [sealed[next] = 0] (0:0:1 - 1)
		IfNotBlocked
		reached[2][14] = 1;
		(trpt+1)->bup.oval = ((int)now.sealed[ Index(((int)((P2 *)_this)->next), 3) ]);
		now.sealed[ Index(((P2 *)_this)->next, 3) ] = 0;
#ifdef VAR_RANGES
		logval("sealed[maintenance:next]", ((int)now.sealed[ Index(((int)((P2 *)_this)->next), 3) ]));
#endif
		;
		_m = 3; goto P999; /* 0 */
	case 31: // STATE 15 - ring.pml:163 - [current = next] (0:0:1 - 1)
		IfNotBlocked
		reached[2][15] = 1;
		(trpt+1)->bup.oval = ((int)now.current);
		now.current = ((int)((P2 *)_this)->next);
#ifdef VAR_RANGES
		logval("current", ((int)now.current));
#endif
		;
		_m = 3; goto P999; /* 0 */
	case 32: // STATE 18 - ring.pml:166 - [(((s!=current)&&!(sealed[s])))] (0:0:0 - 1)
		IfNotBlocked
		reached[2][18] = 1;
		if (!(((((int)((P2 *)_this)->s)!=((int)now.current))&& !(((int)now.sealed[ Index(((int)((P2 *)_this)->s), 3) ])))))
			continue;
		_m = 3; goto P999; /* 0 */
	case 33: // STATE 19 - ring.pml:171 - [(((writers[s]==0)&&!(exclusive[s])))] (0:0:0 - 1)
		IfNotBlocked
		reached[2][19] = 1;
		if (!(((((int)now.writers[ Index(((int)((P2 *)_this)->s), 3) ])==0)&& !(((int)now.exclusive[ Index(((int)((P2 *)_this)->s), 3) ])))))
			continue;
		_m = 3; goto P999; /* 0 */
	case 34: // STATE 21 - ring.pml:174 - [mark = (tick+1)] (0:0:1 - 1)
		IfNotBlocked
		reached[2][21] = 1;
		(trpt+1)->bup.oval = ((int)((P2 *)_this)->mark);
		((P2 *)_this)->mark = (((int)now.tick)+1);
#ifdef VAR_RANGES
		logval("maintenance:mark", ((int)((P2 *)_this)->mark));
#endif
		;
		_m = 3; goto P999; /* 0 */
	case 35: // STATE 24 - ring.pml:176 - [D_STEP176]
		IfNotBlocked

		reached[2][24] = 1;
		reached[2][t->st] = 1;
		reached[2][tt] = 1;

		if (TstOnly) return 1;

		sv_save();
		S_141_0: /* 2 */
		now.sealed[ Index(((P2 *)_this)->s, 3) ] = 1;
#ifdef VAR_RANGES
		logval("sealed[maintenance:s]", ((int)now.sealed[ Index(((int)((P2 *)_this)->s), 3) ]));
#endif
		;
S_142_0: /* 2 */
		now.seal_tick[ Index(((P2 *)_this)->s, 3) ] = ((int)((P2 *)_this)->mark);
#ifdef VAR_RANGES
		logval("seal_tick[maintenance:s]", ((int)now.seal_tick[ Index(((int)((P2 *)_this)->s), 3) ]));
#endif
		;
		goto S_146_0;
S_146_0: /* 1 */

#if defined(C_States) && (HAS_TRACK==1)
		c_update((uchar *) &(now.c_state[0]));
#endif
		_m = 3; goto P999;

	case 36: // STATE 28 - ring.pml:179 - [(((((s!=current)&&sealed[s])&&(rows[s]!=0))&&(cursor_tick>=seal_tick[s])))] (0:0:0 - 1)
		IfNotBlocked
		reached[2][28] = 1;
		if (!(((((((int)((P2 *)_this)->s)!=((int)now.current))&&((int)now.sealed[ Index(((int)((P2 *)_this)->s), 3) ]))&&(((int)now.rows[ Index(((int)((P2 *)_this)->s), 3) ])!=0))&&(((int)now.cursor_tick)>=((int)now.seal_tick[ Index(((int)((P2 *)_this)->s), 3) ])))))
			continue;
		_m = 3; goto P999; /* 0 */
	case 37: // STATE 29 - ring.pml:181 - [(((writers[s]==0)&&(readers[s]==0)))] (0:0:0 - 1)
		IfNotBlocked
		reached[2][29] = 1;
		if (!(((((int)now.writers[ Index(((int)((P2 *)_this)->s), 3) ])==0)&&(((int)now.readers[ Index(((int)((P2 *)_this)->s), 3) ])==0))))
			continue;
		_m = 3; goto P999; /* 0 */
	case 38: // STATE 30 - ring.pml:181 - [exclusive[s] = 1] (0:0:1 - 1)
		IfNotBlocked
		reached[2][30] = 1;
		(trpt+1)->bup.oval = ((int)now.exclusive[ Index(((int)((P2 *)_this)->s), 3) ]);
		now.exclusive[ Index(((P2 *)_this)->s, 3) ] = 1;
#ifdef VAR_RANGES
		logval("exclusive[maintenance:s]", ((int)now.exclusive[ Index(((int)((P2 *)_this)->s), 3) ]));
#endif
		;
		_m = 3; goto P999; /* 0 */
	case 39: // STATE 32 - ring.pml:183 - [((cursor_tick>=seal_tick[s]))] (0:0:0 - 1)
		IfNotBlocked
		reached[2][32] = 1;
		if (!((((int)now.cursor_tick)>=((int)now.seal_tick[ Index(((int)((P2 *)_this)->s), 3) ]))))
			continue;
		_m = 3; goto P999; /* 0 */
	case 40: // STATE 33 - ring.pml:184 - [assert((((rows[s]&committed)&~(cursor))==0))] (0:0:0 - 1)
		IfNotBlocked
		reached[2][33] = 1;
		spin_assert((((((int)now.rows[ Index(((int)((P2 *)_this)->s), 3) ])&((int)now.committed))& ~(((int)now.cursor)))==0), "(((rows[s]&committed)& ~(cursor))==0)", II, tt, t);
		_m = 3; goto P999; /* 0 */
	case 41: // STATE 36 - ring.pml:185 - [D_STEP185]
		IfNotBlocked

		reached[2][36] = 1;
		reached[2][t->st] = 1;
		reached[2][tt] = 1;

		if (TstOnly) return 1;

		sv_save();
		S_153_0: /* 2 */
		now.rows[ Index(((P2 *)_this)->s, 3) ] = 0;
#ifdef VAR_RANGES
		logval("rows[maintenance:s]", ((int)now.rows[ Index(((int)((P2 *)_this)->s), 3) ]));
#endif
		;
S_154_0: /* 2 */
		now.newest[ Index(((P2 *)_this)->s, 3) ] = 0;
#ifdef VAR_RANGES
		logval("newest[maintenance:s]", ((int)now.newest[ Index(((int)((P2 *)_this)->s), 3) ]));
#endif
		;
		goto S_158_0;
S_158_0: /* 1 */

#if defined(C_States) && (HAS_TRACK==1)
		c_update((uchar *) &(now.c_state[0]));
#endif
		_m = 3; goto P999;

	case 42: // STATE 40 - ring.pml:188 - [exclusive[s] = 0] (0:0:1 - 3)
		IfNotBlocked
		reached[2][40] = 1;
		(trpt+1)->bup.oval = ((int)now.exclusive[ Index(((int)((P2 *)_this)->s), 3) ]);
		now.exclusive[ Index(((P2 *)_this)->s, 3) ] = 0;
#ifdef VAR_RANGES
		logval("exclusive[maintenance:s]", ((int)now.exclusive[ Index(((int)((P2 *)_this)->s), 3) ]));
#endif
		;
		_m = 3; goto P999; /* 0 */
	case 43: // STATE 44 - ring.pml:191 - [s = ((s+1)%3)] (0:0:1 - 1)
		IfNotBlocked
		reached[2][44] = 1;
		(trpt+1)->bup.oval = ((int)((P2 *)_this)->s);
		((P2 *)_this)->s = ((((int)((P2 *)_this)->s)+1)%3);
#ifdef VAR_RANGES
		logval("maintenance:s", ((int)((P2 *)_this)->s));
#endif
		;
		_m = 3; goto P999; /* 0 */

		 /* PROC worker */
	case 44: // STATE 1 - ring.pml:93 - [(((((base!=committed)||(sealed[0]&&(seal_tick[0]>base_tick)))||(sealed[1]&&(seal_tick[1]>base_tick)))||(sealed[2]&&(seal_tick[2]>base_tick))))] (0:0:0 - 1)
		IfNotBlocked
		reached[1][1] = 1;
		if (!(((((((int)now.base)!=((int)now.committed))||(((int)now.sealed[0])&&(((int)now.seal_tick[0])>((int)now.base_tick))))||(((int)now.sealed[1])&&(((int)now.seal_tick[1])>((int)now.base_tick))))||(((int)now.sealed[2])&&(((int)now.seal_tick[2])>((int)now.base_tick))))))
			continue;
		_m = 3; goto P999; /* 0 */
	case 45: // STATE 70 - ring.pml:132 - [((boot!=my_boot))] (0:0:1 - 26)
		IfNotBlocked
		reached[1][70] = 1;
		if (!((((int)now.boot)!=((int)((P1 *)_this)->my_boot))))
			continue;
		if (TstOnly) return 1; /* TT */
		/* dead 1: my_boot */  (trpt+1)->bup.oval = ((P1 *)_this)->my_boot;
#ifdef HAS_CODE
		if (!readtrail)
#endif
			((P1 *)_this)->my_boot = 0;
		_m = 3; goto P999; /* 0 */
	case 46: // STATE 71 - ring.pml:132 - [my_boot = boot] (0:0:1 - 1)
		IfNotBlocked
		reached[1][71] = 1;
		(trpt+1)->bup.oval = ((int)((P1 *)_this)->my_boot);
		((P1 *)_this)->my_boot = ((int)now.boot);
#ifdef VAR_RANGES
		logval("worker:my_boot", ((int)((P1 *)_this)->my_boot));
#endif
		;
		_m = 3; goto P999; /* 0 */
	case 47: // STATE 2 - ring.pml:94 - [tick = (tick+1)] (0:0:1 - 1)
		IfNotBlocked
		reached[1][2] = 1;
		(trpt+1)->bup.oval = ((int)now.tick);
		now.tick = (((int)now.tick)+1);
#ifdef VAR_RANGES
		logval("tick", ((int)now.tick));
#endif
		;
		_m = 3; goto P999; /* 0 */
	case 48: // STATE 3 - ring.pml:94 - [number = tick] (0:0:1 - 1)
		IfNotBlocked
		reached[1][3] = 1;
		(trpt+1)->bup.oval = ((int)((P1 *)_this)->number);
		((P1 *)_this)->number = ((int)now.tick);
#ifdef VAR_RANGES
		logval("worker:number", ((int)((P1 *)_this)->number));
#endif
		;
		_m = 3; goto P999; /* 0 */
	case 49: // STATE 5 - ring.pml:95 - [snapshot = committed] (0:0:1 - 1)
		IfNotBlocked
		reached[1][5] = 1;
		(trpt+1)->bup.oval = ((int)((P1 *)_this)->snapshot);
		((P1 *)_this)->snapshot = ((int)now.committed);
#ifdef VAR_RANGES
		logval("worker:snapshot", ((int)((P1 *)_this)->snapshot));
#endif
		;
		_m = 3; goto P999; /* 0 */
	case 50: // STATE 20 - ring.pml:96 - [D_STEP96]
		IfNotBlocked

		reached[1][20] = 1;
		reached[1][t->st] = 1;
		reached[1][tt] = 1;

		if (TstOnly) return 1;

		sv_save();
		S_049_0: /* 2 */
		((P1 *)_this)->wanted = 0;
#ifdef VAR_RANGES
		logval("worker:wanted", ((int)((P1 *)_this)->wanted));
#endif
		;
S_050_0: /* 2 */
		((P1 *)_this)->i = 0;
#ifdef VAR_RANGES
		logval("worker:i", ((int)((P1 *)_this)->i));
#endif
		;
S_061_0: /* 2 */
S_060_0: /* 2 */
S_051_0: /* 2 */
		if (!((((int)((P1 *)_this)->i)<=(3-1))))
			goto S_060_1;
S_055_0: /* 2 */
S_052_0: /* 2 */
		if (!(( !(((int)now.sealed[ Index(((int)((P1 *)_this)->i), 3) ]))||(((int)now.seal_tick[ Index(((int)((P1 *)_this)->i), 3) ])>=(((int)now.base_tick)+1)))))
			goto S_055_1;
S_053_0: /* 2 */
		((P1 *)_this)->wanted = (((int)((P1 *)_this)->wanted)|(1<<((int)((P1 *)_this)->i)));
#ifdef VAR_RANGES
		logval("worker:wanted", ((int)((P1 *)_this)->wanted));
#endif
		;
		goto S_056_0;
S_055_1: /* 3 */
S_054_0: /* 2 */
		/* else */;
		goto S_056_0;
S_055_2: /* 3 */
		Uerror("blocking sel in d_step (nr.0, near line 99)");
S_056_0: /* 2 */
S_057_0: /* 2 */
		((P1 *)_this)->i = (((int)((P1 *)_this)->i)+1);
#ifdef VAR_RANGES
		logval("worker:i", ((int)((P1 *)_this)->i));
#endif
		;
		goto S_061_0; /* ';' */
S_060_1: /* 3 */
S_058_0: /* 2 */
		/* else */;
S_059_0: /* 2 */
		goto S_062_0;	/* 'goto' */
S_060_2: /* 3 */
		Uerror("blocking sel in d_step (nr.1, near line 103)");
S_062_0: /* 2 */
		goto S_064_0;	/* 'break' */
S_064_0: /* 1 */

#if defined(C_States) && (HAS_TRACK==1)
		c_update((uchar *) &(now.c_state[0]));
#endif
		_m = 3; goto P999;

	case 51: // STATE 21 - ring.pml:105 - [found = 0] (0:0:1 - 1)
		IfNotBlocked
		reached[1][21] = 1;
		(trpt+1)->bup.oval = ((int)((P1 *)_this)->found);
		((P1 *)_this)->found = 0;
#ifdef VAR_RANGES
		logval("worker:found", ((int)((P1 *)_this)->found));
#endif
		;
		_m = 3; goto P999; /* 0 */
	case 52: // STATE 22 - ring.pml:107 - [(!(((((wanted&1)&&exclusive[0])||((wanted&2)&&exclusive[1]))||((wanted&4)&&exclusive[2]))))] (0:0:0 - 1)
		IfNotBlocked
		reached[1][22] = 1;
		if (!( !(((((((int)((P1 *)_this)->wanted)&1)&&((int)now.exclusive[0]))||((((int)((P1 *)_this)->wanted)&2)&&((int)now.exclusive[1])))||((((int)((P1 *)_this)->wanted)&4)&&((int)now.exclusive[2]))))))
			continue;
		_m = 3; goto P999; /* 0 */
	case 53: // STATE 23 - ring.pml:108 - [i = 0] (0:0:1 - 1)
		IfNotBlocked
		reached[1][23] = 1;
		(trpt+1)->bup.oval = ((int)((P1 *)_this)->i);
		((P1 *)_this)->i = 0;
#ifdef VAR_RANGES
		logval("worker:i", ((int)((P1 *)_this)->i));
#endif
		;
		_m = 3; goto P999; /* 0 */
	case 54: // STATE 24 - ring.pml:108 - [((i<=(3-1)))] (0:0:0 - 1)
		IfNotBlocked
		reached[1][24] = 1;
		if (!((((int)((P1 *)_this)->i)<=(3-1))))
			continue;
		_m = 3; goto P999; /* 0 */
	case 55: // STATE 25 - ring.pml:109 - [readers[i] = (readers[i]+((wanted>>i)&1))] (0:0:1 - 1)
		IfNotBlocked
		reached[1][25] = 1;
		(trpt+1)->bup.oval = ((int)now.readers[ Index(((int)((P1 *)_this)->i), 3) ]);
		now.readers[ Index(((P1 *)_this)->i, 3) ] = (((int)now.readers[ Index(((int)((P1 *)_this)->i), 3) ])+((((int)((P1 *)_this)->wanted)>>((int)((P1 *)_this)->i))&1));
#ifdef VAR_RANGES
		logval("readers[worker:i]", ((int)now.readers[ Index(((int)((P1 *)_this)->i), 3) ]));
#endif
		;
		_m = 3; goto P999; /* 0 */
	case 56: // STATE 26 - ring.pml:108 - [i = (i+1)] (0:0:1 - 1)
		IfNotBlocked
		reached[1][26] = 1;
		(trpt+1)->bup.oval = ((int)((P1 *)_this)->i);
		((P1 *)_this)->i = (((int)((P1 *)_this)->i)+1);
#ifdef VAR_RANGES
		logval("worker:i", ((int)((P1 *)_this)->i));
#endif
		;
		_m = 3; goto P999; /* 0 */
	case 57: // STATE 46 - ring.pml:112 - [D_STEP112]
		IfNotBlocked

		reached[1][46] = 1;
		reached[1][t->st] = 1;
		reached[1][tt] = 1;

		if (TstOnly) return 1;

		sv_save();
		S_076_0: /* 2 */
		((P1 *)_this)->i = 0;
#ifdef VAR_RANGES
		logval("worker:i", ((int)((P1 *)_this)->i));
#endif
		;
S_087_0: /* 2 */
S_086_0: /* 2 */
S_077_0: /* 2 */
		if (!((((int)((P1 *)_this)->i)<=(3-1))))
			goto S_086_1;
S_081_0: /* 2 */
S_078_0: /* 2 */
		if (!((((int)((P1 *)_this)->wanted)&(1<<((int)((P1 *)_this)->i)))))
			goto S_081_1;
S_079_0: /* 2 */
		((P1 *)_this)->found = (((int)((P1 *)_this)->found)|((int)now.rows[ Index(((int)((P1 *)_this)->i), 3) ]));
#ifdef VAR_RANGES
		logval("worker:found", ((int)((P1 *)_this)->found));
#endif
		;
		goto S_082_0;
S_081_1: /* 3 */
S_080_0: /* 2 */
		/* else */;
		goto S_082_0;
S_081_2: /* 3 */
		Uerror("blocking sel in d_step (nr.2, near line 114)");
S_082_0: /* 2 */
S_083_0: /* 2 */
		((P1 *)_this)->i = (((int)((P1 *)_this)->i)+1);
#ifdef VAR_RANGES
		logval("worker:i", ((int)((P1 *)_this)->i));
#endif
		;
		goto S_087_0; /* ';' */
S_086_1: /* 3 */
S_084_0: /* 2 */
		/* else */;
S_085_0: /* 2 */
		goto S_088_0;	/* 'goto' */
S_086_2: /* 3 */
		Uerror("blocking sel in d_step (nr.3, near line 118)");
S_088_0: /* 2 */
		goto S_102_0;	/* 'break' */
S_102_0: /* 1 */

#if defined(C_States) && (HAS_TRACK==1)
		c_update((uchar *) &(now.c_state[0]));
#endif
		_m = 3; goto P999;

	case 58: // STATE 47 - ring.pml:121 - [assert((((snapshot&~(base))&~(found))==0))] (0:0:0 - 1)
		IfNotBlocked
		reached[1][47] = 1;
		spin_assert((((((int)((P1 *)_this)->snapshot)& ~(((int)now.base)))& ~(((int)((P1 *)_this)->found)))==0), "(((snapshot& ~(base))& ~(found))==0)", II, tt, t);
		_m = 3; goto P999; /* 0 */
	case 59: // STATE 48 - ring.pml:122 - [base = snapshot] (0:0:1 - 1)
		IfNotBlocked
		reached[1][48] = 1;
		(trpt+1)->bup.oval = ((int)now.base);
		now.base = ((int)((P1 *)_this)->snapshot);
#ifdef VAR_RANGES
		logval("base", ((int)now.base));
#endif
		;
		_m = 3; goto P999; /* 0 */
	case 60: // STATE 49 - ring.pml:123 - [base_tick = number] (0:0:1 - 1)
		IfNotBlocked
		reached[1][49] = 1;
		(trpt+1)->bup.oval = ((int)now.base_tick);
		now.base_tick = ((int)((P1 *)_this)->number);
#ifdef VAR_RANGES
		logval("base_tick", ((int)now.base_tick));
#endif
		;
		_m = 3; goto P999; /* 0 */
	case 61: // STATE 50 - ring.pml:124 - [i = 0] (0:0:1 - 1)
		IfNotBlocked
		reached[1][50] = 1;
		(trpt+1)->bup.oval = ((int)((P1 *)_this)->i);
		((P1 *)_this)->i = 0;
#ifdef VAR_RANGES
		logval("worker:i", ((int)((P1 *)_this)->i));
#endif
		;
		_m = 3; goto P999; /* 0 */
	case 62: // STATE 51 - ring.pml:124 - [((i<=(3-1)))] (0:0:0 - 1)
		IfNotBlocked
		reached[1][51] = 1;
		if (!((((int)((P1 *)_this)->i)<=(3-1))))
			continue;
		_m = 3; goto P999; /* 0 */
	case 63: // STATE 52 - ring.pml:125 - [readers[i] = (readers[i]-((wanted>>i)&1))] (0:0:1 - 1)
		IfNotBlocked
		reached[1][52] = 1;
		(trpt+1)->bup.oval = ((int)now.readers[ Index(((int)((P1 *)_this)->i), 3) ]);
		now.readers[ Index(((P1 *)_this)->i, 3) ] = (((int)now.readers[ Index(((int)((P1 *)_this)->i), 3) ])-((((int)((P1 *)_this)->wanted)>>((int)((P1 *)_this)->i))&1));
#ifdef VAR_RANGES
		logval("readers[worker:i]", ((int)now.readers[ Index(((int)((P1 *)_this)->i), 3) ]));
#endif
		;
		_m = 3; goto P999; /* 0 */
	case 64: // STATE 53 - ring.pml:124 - [i = (i+1)] (0:0:1 - 1)
		IfNotBlocked
		reached[1][53] = 1;
		(trpt+1)->bup.oval = ((int)((P1 *)_this)->i);
		((P1 *)_this)->i = (((int)((P1 *)_this)->i)+1);
#ifdef VAR_RANGES
		logval("worker:i", ((int)((P1 *)_this)->i));
#endif
		;
		_m = 3; goto P999; /* 0 */
	case 65: // STATE 66 - ring.pml:130 - [D_STEP130]
		if (!(boq == -1 && (((int)now.cursor_tick)!=((int)now.base_tick))))
			continue;

		reached[1][66] = 1;
		reached[1][t->st] = 1;
		reached[1][tt] = 1;

		if (TstOnly) return 1;

		sv_save();
		S_106_0: /* 2 */
		if (!((((int)now.cursor_tick)!=((int)now.base_tick))))
			Uerror("block in d_step seq");
S_107_0: /* 2 */
		now.cursor = ((int)now.base);
#ifdef VAR_RANGES
		logval("cursor", ((int)now.cursor));
#endif
		;
S_108_0: /* 2 */
		now.cursor_tick = ((int)now.base_tick);
#ifdef VAR_RANGES
		logval("cursor_tick", ((int)now.cursor_tick));
#endif
		;
		goto S_111_0;
S_111_0: /* 1 */

#if defined(C_States) && (HAS_TRACK==1)
		c_update((uchar *) &(now.c_state[0]));
#endif
		_m = 3; goto P999;


		 /* PROC producer */
	case 66: // STATE 1 - ring.pml:52 - [((n==2))] (0:0:0 - 1)
		IfNotBlocked
		reached[0][1] = 1;
		if (!((((int)((P0 *)_this)->n)==2)))
			continue;
		_m = 3; goto P999; /* 0 */
	case 67: // STATE 33 - ring.pml:78 - [((boot!=my_boot))] (0:0:1 - 17)
		IfNotBlocked
		reached[0][33] = 1;
		if (!((((int)now.boot)!=((int)((P0 *)_this)->my_boot))))
			continue;
		if (TstOnly) return 1; /* TT */
		/* dead 1: my_boot */  (trpt+1)->bup.oval = ((P0 *)_this)->my_boot;
#ifdef HAS_CODE
		if (!readtrail)
#endif
			((P0 *)_this)->my_boot = 0;
		_m = 3; goto P999; /* 0 */
	case 68: // STATE 34 - ring.pml:78 - [my_boot = boot] (0:0:1 - 1)
		IfNotBlocked
		reached[0][34] = 1;
		(trpt+1)->bup.oval = ((int)((P0 *)_this)->my_boot);
		((P0 *)_this)->my_boot = ((int)now.boot);
#ifdef VAR_RANGES
		logval("producer:my_boot", ((int)((P0 *)_this)->my_boot));
#endif
		;
		_m = 3; goto P999; /* 0 */
	case 69: // STATE 3 - ring.pml:53 - [((n<2))] (0:0:0 - 1)
		IfNotBlocked
		reached[0][3] = 1;
		if (!((((int)((P0 *)_this)->n)<2)))
			continue;
		_m = 3; goto P999; /* 0 */
	case 70: // STATE 4 - ring.pml:54 - [event = (1<<(first+n))] (0:0:1 - 1)
		IfNotBlocked
		reached[0][4] = 1;
		(trpt+1)->bup.oval = ((int)((P0 *)_this)->event);
		((P0 *)_this)->event = (1<<(((int)((P0 *)_this)->first)+((int)((P0 *)_this)->n)));
#ifdef VAR_RANGES
		logval("producer:event", ((int)((P0 *)_this)->event));
#endif
		;
		_m = 3; goto P999; /* 0 */
	case 71: // STATE 5 - ring.pml:55 - [n = (n+1)] (0:0:1 - 1)
		IfNotBlocked
		reached[0][5] = 1;
		(trpt+1)->bup.oval = ((int)((P0 *)_this)->n);
		((P0 *)_this)->n = (((int)((P0 *)_this)->n)+1);
#ifdef VAR_RANGES
		logval("producer:n", ((int)((P0 *)_this)->n));
#endif
		;
		_m = 3; goto P999; /* 0 */
	case 72: // STATE 6 - ring.pml:56 - [s = current] (0:0:2 - 1)
		IfNotBlocked
		reached[0][6] = 1;
		(trpt+1)->bup.ovals = grab_ints(2);
		(trpt+1)->bup.ovals[0] = ((int)((P0 *)_this)->s);
		((P0 *)_this)->s = ((int)now.current);
#ifdef VAR_RANGES
		logval("producer:s", ((int)((P0 *)_this)->s));
#endif
		;
		if (TstOnly) return 1; /* TT */
		/* dead 2: s */  
#ifdef HAS_CODE
		if (!readtrail)
#endif
			((P0 *)_this)->s = 0;
		_m = 3; goto P999; /* 0 */
	case 73: // STATE 7 - ring.pml:59 - [s = current] (0:0:1 - 5)
		IfNotBlocked
		reached[0][7] = 1;
		(trpt+1)->bup.oval = ((int)((P0 *)_this)->s);
		((P0 *)_this)->s = ((int)now.current);
#ifdef VAR_RANGES
		logval("producer:s", ((int)((P0 *)_this)->s));
#endif
		;
		_m = 3; goto P999; /* 0 */
	case 74: // STATE 8 - ring.pml:62 - [(!(exclusive[s]))] (0:0:0 - 1)
		IfNotBlocked
		reached[0][8] = 1;
		if (!( !(((int)now.exclusive[ Index(((int)((P0 *)_this)->s), 3) ]))))
			continue;
		_m = 3; goto P999; /* 0 */
	case 75: // STATE 9 - ring.pml:62 - [writers[s] = (writers[s]+1)] (0:0:1 - 1)
		IfNotBlocked
		reached[0][9] = 1;
		(trpt+1)->bup.oval = ((int)now.writers[ Index(((int)((P0 *)_this)->s), 3) ]);
		now.writers[ Index(((P0 *)_this)->s, 3) ] = (((int)now.writers[ Index(((int)((P0 *)_this)->s), 3) ])+1);
#ifdef VAR_RANGES
		logval("writers[producer:s]", ((int)now.writers[ Index(((int)((P0 *)_this)->s), 3) ]));
#endif
		;
		_m = 3; goto P999; /* 0 */
	case 76: // STATE 11 - ring.pml:63 - [((exclusive[s]&&(current!=s)))] (0:0:1 - 1)
		IfNotBlocked
		reached[0][11] = 1;
		if (!((((int)now.exclusive[ Index(((int)((P0 *)_this)->s), 3) ])&&(((int)now.current)!=((int)((P0 *)_this)->s)))))
			continue;
		if (TstOnly) return 1; /* TT */
		/* dead 1: s */  (trpt+1)->bup.oval = ((P0 *)_this)->s;
#ifdef HAS_CODE
		if (!readtrail)
#endif
			((P0 *)_this)->s = 0;
		_m = 3; goto P999; /* 0 */
	case 77: // STATE 15 - ring.pml:67 - [((current!=s))] (0:0:0 - 1)
		IfNotBlocked
		reached[0][15] = 1;
		if (!((((int)now.current)!=((int)((P0 *)_this)->s))))
			continue;
		_m = 3; goto P999; /* 0 */
	case 78: // STATE 16 - ring.pml:67 - [writers[s] = (writers[s]-1)] (0:0:1 - 1)
		IfNotBlocked
		reached[0][16] = 1;
		(trpt+1)->bup.oval = ((int)now.writers[ Index(((int)((P0 *)_this)->s), 3) ]);
		now.writers[ Index(((P0 *)_this)->s, 3) ] = (((int)now.writers[ Index(((int)((P0 *)_this)->s), 3) ])-1);
#ifdef VAR_RANGES
		logval("writers[producer:s]", ((int)now.writers[ Index(((int)((P0 *)_this)->s), 3) ]));
#endif
		;
		_m = 3; goto P999; /* 0 */
	case 79: // STATE 24 - ring.pml:71 - [D_STEP71]
		IfNotBlocked

		reached[0][24] = 1;
		reached[0][t->st] = 1;
		reached[0][tt] = 1;

		if (TstOnly) return 1;

		sv_save();
		S_020_0: /* 2 */
		now.clock = (((int)now.clock)+1);
#ifdef VAR_RANGES
		logval("clock", ((int)now.clock));
#endif
		;
S_021_0: /* 2 */
		now.rows[ Index(((P0 *)_this)->s, 3) ] = (((int)now.rows[ Index(((int)((P0 *)_this)->s), 3) ])|((int)((P0 *)_this)->event));
#ifdef VAR_RANGES
		logval("rows[producer:s]", ((int)now.rows[ Index(((int)((P0 *)_this)->s), 3) ]));
#endif
		;
S_022_0: /* 2 */
		now.newest[ Index(((P0 *)_this)->s, 3) ] = ((int)now.clock);
#ifdef VAR_RANGES
		logval("newest[producer:s]", ((int)now.newest[ Index(((int)((P0 *)_this)->s), 3) ]));
#endif
		;
		goto S_026_0;
S_026_0: /* 1 */

#if defined(C_States) && (HAS_TRACK==1)
		c_update((uchar *) &(now.c_state[0]));
#endif
		_m = 3; goto P999;

	case 80: // STATE 25 - ring.pml:73 - [committed = (committed|event)] (0:0:1 - 1)
		IfNotBlocked
		reached[0][25] = 1;
		(trpt+1)->bup.oval = ((int)now.committed);
		now.committed = (((int)now.committed)|((int)((P0 *)_this)->event));
#ifdef VAR_RANGES
		logval("committed", ((int)now.committed));
#endif
		;
		_m = 3; goto P999; /* 0 */
	case 81: // STATE 29 - ring.pml:76 - [writers[s] = (writers[s]-1)] (0:0:1 - 3)
		IfNotBlocked
		reached[0][29] = 1;
		(trpt+1)->bup.oval = ((int)now.writers[ Index(((int)((P0 *)_this)->s), 3) ]);
		now.writers[ Index(((P0 *)_this)->s, 3) ] = (((int)now.writers[ Index(((int)((P0 *)_this)->s), 3) ])-1);
#ifdef VAR_RANGES
		logval("writers[producer:s]", ((int)now.writers[ Index(((int)((P0 *)_this)->s), 3) ]));
#endif
		;
		_m = 3; goto P999; /* 0 */
	case 82: // STATE 38 - ring.pml:80 - [((n<2))] (0:0:0 - 1)
		IfNotBlocked
		reached[0][38] = 1;
		if (!((((int)((P0 *)_this)->n)<2)))
			continue;
		_m = 3; goto P999; /* 0 */
	case 83: // STATE 43 - ring.pml:83 - [ended = (ended+1)] (0:0:1 - 2)
		IfNotBlocked
		reached[0][43] = 1;
		(trpt+1)->bup.oval = ((int)now.ended);
		now.ended = (((int)now.ended)+1);
#ifdef VAR_RANGES
		logval("ended", ((int)now.ended));
#endif
		;
		_m = 3; goto P999; /* 0 */
	case 84: // STATE 44 - ring.pml:84 - [-end-] (0:0:0 - 1)
		IfNotBlocked
		reached[0][44] = 1;
		if (!delproc(1, II)) continue;
		_m = 3; goto P999; /* 0 */
	case  _T5:	/* np_ */
		if (!((!(trpt->o_pm&4) && !(trpt->tau&128))))
			continue;
		/* else fall through */
	case  _T2:	/* true */
		_m = 3; goto P999;
#undef rand
	}


	switch (t->back) {
	default: Uerror("bad return move");
	case  0: goto R999; /* nothing to undo */

		 /* CLAIM all_read */
;
		;
		;
		;
		
	case 5: // STATE 13
		;
		p_restor(II);
		;
		;
		goto R999;

		 /* PROC :init: */

	case 6: // STATE 1
		;
		;
		delproc(0, now._nr_pr-1);
		;
		goto R999;

	case 7: // STATE 2
		;
		;
		delproc(0, now._nr_pr-1);
		;
		goto R999;

	case 8: // STATE 3
		;
		;
		delproc(0, now._nr_pr-1);
		;
		goto R999;

	case 9: // STATE 4
		;
		;
		delproc(0, now._nr_pr-1);
		;
		goto R999;

	case 10: // STATE 5
		;
		;
		delproc(0, now._nr_pr-1);
		;
		goto R999;

	case 11: // STATE 7
		;
		p_restor(II);
		;
		;
		goto R999;

		 /* PROC crash */

	case 12: // STATE 1
		;
		((P3 *)_this)->at = trpt->bup.oval;
		;
		goto R999;
;
		;
		
	case 14: // STATE 7
		;
		((P3 *)_this)->i = trpt->bup.ovals[3];
		now.current = trpt->bup.ovals[2];
		((P3 *)_this)->highest = trpt->bup.ovals[1];
		now.boot = trpt->bup.ovals[0];
		;
		ungrab_ints(trpt->bup.ovals, 4);
		goto R999;

	case 15: // STATE 13
		;
		now.seal_tick[ Index(((P3 *)_this)->i, 3) ] = trpt->bup.ovals[4];
		now.sealed[ Index(((P3 *)_this)->i, 3) ] = trpt->bup.ovals[3];
		now.exclusive[ Index(((P3 *)_this)->i, 3) ] = trpt->bup.ovals[2];
		now.readers[ Index(((P3 *)_this)->i, 3) ] = trpt->bup.ovals[1];
		now.writers[ Index(((P3 *)_this)->i, 3) ] = trpt->bup.ovals[0];
		;
		ungrab_ints(trpt->bup.ovals, 5);
		goto R999;

	case 16: // STATE 20
		;
		((P3 *)_this)->i = trpt->bup.ovals[3];
		now.current = trpt->bup.ovals[2];
		((P3 *)_this)->highest = trpt->bup.ovals[1];
	/* 0 */	((P3 *)_this)->highest = trpt->bup.ovals[0];
		;
		;
		ungrab_ints(trpt->bup.ovals, 4);
		goto R999;

	case 17: // STATE 20
		;
		((P3 *)_this)->i = trpt->bup.oval;
		;
		goto R999;

	case 18: // STATE 33
		;
		((P3 *)_this)->at = trpt->bup.ovals[3];
		now.tick = trpt->bup.ovals[2];
		now.base_tick = trpt->bup.ovals[1];
		now.base = trpt->bup.ovals[0];
		;
		ungrab_ints(trpt->bup.ovals, 4);
		goto R999;

	case 19: // STATE 33
		;
		((P3 *)_this)->at = trpt->bup.oval;
		;
		goto R999;

	case 20: // STATE 33
		;
		((P3 *)_this)->at = trpt->bup.oval;
		;
		goto R999;

	case 21: // STATE 39
		;
		p_restor(II);
		;
		;
		goto R999;

		 /* PROC maintenance */
;
		;
		
	case 23: // STATE 48
		;
	/* 0 */	((P2 *)_this)->my_boot = trpt->bup.oval;
		;
		;
		goto R999;

	case 24: // STATE 49
		;
		((P2 *)_this)->my_boot = trpt->bup.oval;
		;
		goto R999;

	case 25: // STATE 2
		;
		((P2 *)_this)->next = trpt->bup.oval;
		;
		goto R999;
;
		;
		;
		;
		
	case 28: // STATE 6
		;
		((P2 *)_this)->next = trpt->bup.oval;
		;
		goto R999;

	case 29: // STATE 12
		;
	/* 0 */	((P2 *)_this)->next = trpt->bup.oval;
		;
		;
		goto R999;

	case 30: // STATE 14
		;
		now.sealed[ Index(((P2 *)_this)->next, 3) ] = trpt->bup.oval;
		;
		goto R999;

	case 31: // STATE 15
		;
		now.current = trpt->bup.oval;
		;
		goto R999;
;
		;
		;
		;
		
	case 34: // STATE 21
		;
		((P2 *)_this)->mark = trpt->bup.oval;
		;
		goto R999;
	case 35: // STATE 24
		sv_restor();
		goto R999;
;
		;
		;
		;
		
	case 38: // STATE 30
		;
		now.exclusive[ Index(((P2 *)_this)->s, 3) ] = trpt->bup.oval;
		;
		goto R999;
;
		;
		;
		;
			case 41: // STATE 36
		sv_restor();
		goto R999;

	case 42: // STATE 40
		;
		now.exclusive[ Index(((P2 *)_this)->s, 3) ] = trpt->bup.oval;
		;
		goto R999;

	case 43: // STATE 44
		;
		((P2 *)_this)->s = trpt->bup.oval;
		;
		goto R999;

		 /* PROC worker */
;
		;
		
	case 45: // STATE 70
		;
	/* 0 */	((P1 *)_this)->my_boot = trpt->bup.oval;
		;
		;
		goto R999;

	case 46: // STATE 71
		;
		((P1 *)_this)->my_boot = trpt->bup.oval;
		;
		goto R999;

	case 47: // STATE 2
		;
		now.tick = trpt->bup.oval;
		;
		goto R999;

	case 48: // STATE 3
		;
		((P1 *)_this)->number = trpt->bup.oval;
		;
		goto R999;

	case 49: // STATE 5
		;
		((P1 *)_this)->snapshot = trpt->bup.oval;
		;
		goto R999;
	case 50: // STATE 20
		sv_restor();
		goto R999;

	case 51: // STATE 21
		;
		((P1 *)_this)->found = trpt->bup.oval;
		;
		goto R999;
;
		;
		
	case 53: // STATE 23
		;
		((P1 *)_this)->i = trpt->bup.oval;
		;
		goto R999;
;
		;
		
	case 55: // STATE 25
		;
		now.readers[ Index(((P1 *)_this)->i, 3) ] = trpt->bup.oval;
		;
		goto R999;

	case 56: // STATE 26
		;
		((P1 *)_this)->i = trpt->bup.oval;
		;
		goto R999;
	case 57: // STATE 46
		sv_restor();
		goto R999;
;
		;
		
	case 59: // STATE 48
		;
		now.base = trpt->bup.oval;
		;
		goto R999;

	case 60: // STATE 49
		;
		now.base_tick = trpt->bup.oval;
		;
		goto R999;

	case 61: // STATE 50
		;
		((P1 *)_this)->i = trpt->bup.oval;
		;
		goto R999;
;
		;
		
	case 63: // STATE 52
		;
		now.readers[ Index(((P1 *)_this)->i, 3) ] = trpt->bup.oval;
		;
		goto R999;

	case 64: // STATE 53
		;
		((P1 *)_this)->i = trpt->bup.oval;
		;
		goto R999;
	case 65: // STATE 66
		sv_restor();
		goto R999;

		 /* PROC producer */
;
		;
		
	case 67: // STATE 33
		;
	/* 0 */	((P0 *)_this)->my_boot = trpt->bup.oval;
		;
		;
		goto R999;

	case 68: // STATE 34
		;
		((P0 *)_this)->my_boot = trpt->bup.oval;
		;
		goto R999;
;
		;
		
	case 70: // STATE 4
		;
		((P0 *)_this)->event = trpt->bup.oval;
		;
		goto R999;

	case 71: // STATE 5
		;
		((P0 *)_this)->n = trpt->bup.oval;
		;
		goto R999;

	case 72: // STATE 6
		;
		((P0 *)_this)->s = trpt->bup.ovals[0];
		;
		ungrab_ints(trpt->bup.ovals, 2);
		goto R999;

	case 73: // STATE 7
		;
		((P0 *)_this)->s = trpt->bup.oval;
		;
		goto R999;
;
		;
		
	case 75: // STATE 9
		;
		now.writers[ Index(((P0 *)_this)->s, 3) ] = trpt->bup.oval;
		;
		goto R999;

	case 76: // STATE 11
		;
	/* 0 */	((P0 *)_this)->s = trpt->bup.oval;
		;
		;
		goto R999;
;
		;
		
	case 78: // STATE 16
		;
		now.writers[ Index(((P0 *)_this)->s, 3) ] = trpt->bup.oval;
		;
		goto R999;
	case 79: // STATE 24
		sv_restor();
		goto R999;

	case 80: // STATE 25
		;
		now.committed = trpt->bup.oval;
		;
		goto R999;

	case 81: // STATE 29
		;
		now.writers[ Index(((P0 *)_this)->s, 3) ] = trpt->bup.oval;
		;
		goto R999;
;
		;
		
	case 83: // STATE 43
		;
		now.ended = trpt->bup.oval;
		;
		goto R999;

	case 84: // STATE 44
		;
		p_restor(II);
		;
		;
		goto R999;
	}


"""Bugs in rewards that reach outside: the walls around a program, the verdict, an endpoint."""

from __future__ import annotations

from .mutant import Mutant

WALLS, CALLS = "rewards/_jail/_walls.py", "rewards/_jail/_calls.py"
JUDGE, PROGRAM, SANDBOX = (
    "rewards/_jail/_judge.py",
    "rewards/_jail/_program.py",
    "rewards/_sandbox.py",
)
CODE, HTTP, RETRY = "rewards/code.py", "rewards/http.py", "rewards/_retry.py"
ADDRESS, REQUEST = "rewards/_address.py", "rewards/_request.py"
HOSTILE = "rewards/test_sandbox.py"
TRICK = "rewards/test_code.py"
ENDPOINT = "rewards/test_http.py"


def _hostile(*tests: str) -> tuple[str, ...]:
    return tuple(f"{HOSTILE}::{test}" for test in tests)


def _trick(*tests: str) -> tuple[str, ...]:
    return tuple(f"{TRICK}::{test}" for test in tests)


def _endpoint(*tests: str) -> tuple[str, ...]:
    return tuple(f"{ENDPOINT}::{test}" for test in tests)


MUTANTS = (
    Mutant(
        "program_inherits_the_environment",
        SANDBOX,
        "env={},",
        "env=None,",
        _hostile("test_secrets_are_not_read"),
        "a reward that shows the trainer's keys to the model's code",
    ),
    Mutant(
        "program_inherits_descriptors",
        SANDBOX,
        "[fd for fd in (write, requests, answers) if fd >= 0]",
        "[n for n in range(3, 99) if os.path.exists(f'/proc/self/fd/{n}')]",
        _hostile("test_descriptors_of_the_host_are_not_inherited"),
        "a program that writes into the trainer's open files",
    ),
    Mutant(
        "wall_clock_is_not_looked_at",
        SANDBOX,
        "                    self.deadline = time.monotonic() + self.limits.seconds",
        "                    self.deadline = time.monotonic() + 4 * self.limits.seconds",
        _hostile("test_a_hostile_program_is_stopped[sleep]"),
        "a program that sleeps past its limit",
    ),
    Mutant(
        "output_has_no_end",
        SANDBOX,
        "        if any(len(part) > self.limits.output_bytes for part in self.parts):",
        "        if any(len(part) > 1 << 40 for part in self.parts):",
        _hostile("test_a_hostile_program_is_stopped[much output]"),
        "the trainer's memory filled through a pipe",
    ),
    Mutant(
        "many_small_files_fill_the_disk",
        SANDBOX,
        "        return len(sizes) > MOST_FILES or sum(sizes) > self.limits.file_bytes",
        "        return False",
        _hostile(
            "test_a_hostile_program_is_stopped[many files]",
            "test_a_hostile_program_is_stopped[too many names]",
        ),
        "a limit on one file's size only",
    ),
    Mutant(
        "exit_status_is_not_asked_for",
        SANDBOX,
        "in_time and process.returncode == 0",
        "in_time",
        _trick("test_programs_that_read_and_print"),
        "the right text, then a crash",
    ),
    Mutant(
        "tests_that_never_ran_count_as_passed",
        SANDBOX,
        'ljust(len(tests), "0")',
        'ljust(len(tests), "1")',
        _trick("test_a_trick_earns_nothing[loop]"),
        "exit(0) before the tests (verl prime_code, LightningRL #1)",
    ),
    Mutant(
        "walls_are_not_tried",
        SANDBOX,
        '    if found != "closed\\n":',
        '    if "closed" not in found:',
        _hostile("test_a_missing_wall_is_found_before_anything_runs"),
        "a sandbox that is believed to stand",
    ),
    Mutant(
        "an_unbuilt_sandbox_is_a_wrong_program",
        SANDBOX,
        '    if report[:1] == b"R":',
        '    if report[:1] in (b"R", b"!"):',
        _hostile("test_a_missing_wall_is_found_before_anything_runs"),
        "a fault of the machinery that becomes a zero",
    ),
    Mutant(
        "files_are_open",
        WALLS,
        "        _close_files(readable, folder)",
        "        pass",
        _hostile("test_nothing_outside_is_written_or_changed"),
        "writes outside (OpenEnv #1199: the reward's own file)",
    ),
    Mutant(
        "root_keeps_its_powers",
        WALLS,
        "    _drop_capabilities()\n    _prctl",
        "    _prctl",
        _hostile("test_root_is_a_person_like_others_inside"),
        "limits that do not bind root in a container",
    ),
    Mutant(
        "memory_has_no_end",
        WALLS,
        "        resource.RLIMIT_AS: memory_bytes,",
        "        resource.RLIMIT_AS: memory_bytes << 10,",
        _hostile("test_every_limit_binds_at_its_size"),
        "a memory bomb that takes the trainer with it",
    ),
    Mutant(
        "programs_outlive_the_run",
        WALLS,
        "    _prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))\n",
        "",
        _hostile("test_it_dies_with_truing"),
        "orphans after a killed run",
    ),
    Mutant(
        "sockets_are_open",
        CALLS,
        "getrandom exit exit_group recvfrom",
        "getrandom exit exit_group socket connect bind recvfrom",
        _hostile("test_there_is_no_network"),
        "code that phones home",
    ),
    Mutant(
        "datagrams_leave_through_a_pair",
        CALLS,
        '"sendto": equal(4, 0)',
        '"sendto": equal(4, 0) + equal(3, 0)',
        _hostile("test_there_is_no_network"),
        "an allowed socket pair that reaches a unix socket",
    ),
    Mutant(
        "processes_can_be_made",
        CALLS,
        "getrandom exit exit_group recvfrom",
        "getrandom exit exit_group clone fork vfork wait4 recvfrom",
        _hostile("test_a_hostile_program_is_stopped[daemon]"),
        "fork bombs and daemons",
    ),
    Mutant(
        "signals_through_fcntl",
        CALLS,
        "(0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030)",
        "(0, 1, 2, 3, 4, 5, 6, 7, 8, 36, 37, 38, 1030)",
        _hostile("test_other_processes_are_left_alone"),
        "F_SETOWN: a file that kills the trainer",
    ),
    Mutant(
        "limits_of_others_can_be_set",
        CALLS,
        '"prlimit64": equal(0, 0)',
        '"prlimit64": [_Compare(0, MASKED, 0, 0)]',
        _hostile("test_other_processes_are_left_alone"),
        "prlimit on the parent",
    ),
    Mutant(
        "files_are_emptied_while_they_are_read",
        CALLS,
        "O_TMPFILE | os.O_TRUNC, 0)",
        "O_TMPFILE, 0)",
        _hostile("test_nothing_outside_is_written_or_changed"),
        "O_RDONLY | O_TRUNC, which Landlock before version 3 does not see",
    ),
    Mutant(
        "objects_compare_themselves",
        JUDGE,
        "        both = isinstance(other, StandIn)\n        return both and self",
        "        return self",
        _trick("test_a_trick_earns_nothing[always equal]"),
        "an __eq__ that is always true",
    ),
    Mutant(
        "programs_hide_built_in_names",
        JUDGE,
        "if hasattr(builtins, name) or",
        "if",
        _trick("test_a_trick_earns_nothing[hidden names]"),
        "a program that defines `sorted`, used by the tests",
    ),
    Mutant(
        "tests_use_the_program_s_modules",
        PROGRAM,
        "        if isinstance(value, types.ModuleType):",
        "        if False:",
        _trick("test_modules_of_the_program_are_not_its_own_in_the_tests"),
        "math.isclose patched by the program",
    ),
    Mutant(
        "work_in_place_is_lost",
        JUDGE,
        '            self._take_over(arguments[1], answer["changed"])',
        "            pass",
        _trick("test_work_in_place_arrives"),
        "a right program that sorts its argument scores 0",
    ),
    Mutant(
        "a_test_that_cannot_be_judged_is_a_zero",
        CODE,
        '        if "?" in verdicts:',
        '        if "!" in verdicts:',
        _trick("test_a_test_that_cannot_be_judged_is_not_a_zero"),
        "any grading failure becomes 0.0 (NeMo Gym #2015)",
    ),
    Mutant(
        "a_row_without_tests_scores_one",
        CODE,
        '            return Unscored("no tests")',
        "            return 1.0",
        _trick("test_a_row_without_tests_leaves_its_group"),
        "nothing failed, so everything passed",
    ),
    Mutant(
        "what_was_printed_is_not_compared",
        CODE,
        "                same = output.finished and _lines(",
        "                same = output.finished or _lines(",
        _trick("test_programs_that_read_and_print"),
        "an exit status as the verdict",
    ),
    Mutant(
        "failed_requests_score_zero",
        RETRY,
        '    raise _stop(\n        endpoint, f"{why}, {attempt} times"',
        '    return [0.0] * count\n    raise _stop(\n        endpoint, f"{why}, {attempt} times"',
        _endpoint("test_a_fault_that_stays_stops_and_is_no_zero"),
        "reward HTTP error became 0, same as a real 0 (verl-omni #366, AReaL #548)",
    ),
    Mutant(
        "null_scores_zero",
        RETRY,
        "None if score is None else float(score)",
        "float(score or 0.0)",
        _endpoint("test_null_and_nan_are_faults_of_the_data"),
        "a completion that was not judged scores 0",
    ),
    Mutant(
        "wrong_counts_are_taken",
        RETRY,
        "    if len(scores) != count or not",
        "    if not",
        _endpoint("test_a_wrong_count_or_type_stops_at_once"),
        "scores that belong to other completions",
    ),
    Mutant(
        "server_errors_stop_at_once",
        RETRY,
        "    if answer.status == TOO_MANY_REQUESTS or answer.status >= 500:",
        "    if answer.status == TOO_MANY_REQUESTS:",
        _endpoint("test_a_fault_that_passes_is_asked_again"),
        "one 502 ends a night's run",
    ),
    Mutant(
        "retry_after_is_not_read",
        RETRY,
        "        asked = _seconds(retry_after)",
        "        asked = _seconds(None)",
        _endpoint("test_retry_after_counts_up_to_the_cap"),
        "a client that is thrown out for its haste",
    ),
    Mutant(
        "waits_do_not_grow",
        RETRY,
        "        longest = self.seconds * 2.0 ** (attempt - 1)",
        "        longest = self.seconds",
        _endpoint("test_waits_grow_with_jitter_up_to_a_cap"),
        "a server that comes back is run over at once",
    ),
    Mutant(
        "names_are_looked_up_every_time",
        RETRY,
        "        if not self.addresses:",
        "        if True:",
        _endpoint("test_a_name_that_leads_elsewhere_later_is_not_followed"),
        "DNS rebinding",
    ),
    Mutant(
        "one_public_address_is_enough",
        ADDRESS,
        "        if not allow_private and not is_public(",
        "        if not allow_private and text == addresses[0] and not is_public(",
        _endpoint("test_a_name_that_leads_to_a_private_address_is_refused"),
        "only the first of a name's addresses is looked at",
    ),
    Mutant(
        "multicast_is_public",
        ADDRESS,
        "    return address.is_global and not address.is_multicast",
        "    return address.is_global",
        _endpoint("test_private_addresses_are_refused"),
        "is_global is true of multicast",
    ),
    Mutant(
        "ipv4_hides_in_ipv6",
        ADDRESS,
        "    if isinstance(address, ipaddress.IPv6Address):",
        "    if isinstance(address, ipaddress.IPv4Network):",
        _endpoint("test_private_addresses_are_refused"),
        "::ffff:169.254.169.254 and its kin",
    ),
    Mutant(
        "bytes_that_trickle_hold_the_run",
        REQUEST,
        "_within(self.timed.seconds, self.timed.deadline)",
        "self.timed.seconds",
        _endpoint("test_a_slow_endpoint_is_given_up"),
        "a timeout per read only",
    ),
    Mutant(
        "answers_have_no_end",
        REQUEST,
        "        if len(content) > most:",
        "        if len(content) > most << 20:",
        _endpoint("test_a_gigabyte_is_cut_off_after_the_cap", "test_the_cap_is_exact"),
        "a body that fills memory (Open WebUI CVE-2024-12537)",
    ),
    Mutant(
        "certificates_are_not_checked",
        REQUEST,
        "ssl.create_default_context()",
        "ssl._create_unverified_context()",
        _endpoint("test_tls_checks_the_name_though_the_address_is_pinned"),
        "verify=False, since the address is pinned",
    ),
    Mutant(
        "header_errors_show_the_secret",
        HTTP,
        '    if not value or not all(" " <= character <= "~" for character in value):',
        "    if not value:",
        _endpoint("test_a_variable_that_is_no_header_is_named_but_not_shown"),
        "http.client's 'Invalid header value' holds the token",
    ),
)

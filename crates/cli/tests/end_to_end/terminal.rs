//! `run -t`: a real terminal, driven as a person would drive it.

use std::process::Command;

use crate::world::World;

/// Runs an Expect script whose `$snowmelt` is the binary; the script's exit code is the test's verdict.
#[track_caller]
pub fn expect(world: &World, script: &str) {
    // What is wrong with every wait is said once the terminal is there: said before, it is about standard input.
    let prelude = "
        set timeout 60
        log_user 1
        proc wanted {what} { send_user \"\\nEXPECTED: $what\\n\"; exit 99 }
        proc start {args} {
            global spawn_id spawn_out
            spawn {*}$args
            expect_after {
                timeout { wanted \"no time-out\" }
                eof { wanted \"no end of output\" }
            }
        }
        set snowmelt [lindex $argv 0]
    ";
    let file = world.path("script.exp");
    std::fs::write(&file, format!("{prelude}\n{script}")).unwrap();
    // The environment is the one that every other command of this world gets.
    let reference = world.command(["--version"]);
    let mut command = Command::new("expect");
    command.arg("-f").arg(&file).arg(reference.get_program()).env("TERM", "xterm");
    for (name, value) in reference.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let output = command.output().expect("expect is installed by scripts/setup");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{stdout}{stderr}", output.status);
}

const EXIT_CODE: &str = "
    expect eof {}
    set result [wait]
    exit [expr {[lindex $result 3] == $wanted_code ? 0 : 98}]
";

#[test]
fn a_shell_on_a_terminal() {
    let world = World::with_small();
    expect(
        &world,
        &format!(
            "start $snowmelt run small -it -- sh
            send \"tty\\r\"
            expect -re {{/dev/(pts/0|console)}}
            send \"echo answer-\\$((6*7))\\r\"
            expect answer-42
            send \"exit 9\\r\"
            set wanted_code 9
            {EXIT_CODE}"
        ),
    );
    world.assert_nothing_left();
}

#[test]
fn the_terminals_size_is_the_callers_and_follows_it() {
    let world = World::with_small();
    expect(
        &world,
        &format!(
            "set stty_init \"rows 31 columns 97\"
            start $snowmelt run small -it -- sh
            expect -re {{[#$] }}
            send \"stty size\\r\"
            expect \"31 97\"
            stty rows 40 columns 120 < $spawn_out(slave,name)
            exec kill -WINCH [exp_pid]
            send \"sleep 0.2; stty size\\r\"
            expect \"40 120\"
            send \"exit\\r\"
            set wanted_code 0
            {EXIT_CODE}"
        ),
    );
}

#[test]
fn control_c_interrupts_the_command_and_not_the_shell() {
    let world = World::with_small();
    expect(
        &world,
        &format!(
            "start $snowmelt run small -it -- sh
            send \"echo begin; sleep 1000\\r\"
            expect -re {{\\nbegin}}
            sleep 0.3
            send \"\\003\"
            send \"echo still-\\$((1+1))-here\\r\"
            expect still-2-here
            send \"exit 4\\r\"
            set wanted_code 4
            {EXIT_CODE}"
        ),
    );
    world.assert_nothing_left();
}

#[test]
fn control_c_works_without_i() {
    // The terminal was raw and nobody read it: no key did anything.
    let world = World::with_small();
    expect(
        &world,
        &format!(
            "set stty_init \"rows 31 columns 97\"
            start $snowmelt run small -t -- sh -c \"trap 'stty size; exit 5' INT; tty; echo ready; while :; do sleep 0.05; done\"
            expect -re {{/dev/(pts/0|console)}}
            expect ready
            send \"\\003\"
            expect \"31 97\"
            set wanted_code 5
            {EXIT_CODE}"
        ),
    );
    world.assert_nothing_left();
}

#[test]
fn an_interrupt_from_elsewhere_reaches_the_command() {
    // runc takes INT for itself where it has a terminal, and ends with status 0.
    let world = World::with_small();
    expect(
        &world,
        &format!(
            "start $snowmelt run small -it -- sh -c \"trap 'exit 5' INT; echo ready; while :; do sleep 0.05; done\"
            expect ready
            exec kill -INT [exp_pid]
            set wanted_code 5
            {EXIT_CODE}"
        ),
    );
    world.assert_nothing_left();
}

#[test]
fn a_missing_command_is_missing_once_on_a_terminal_too() {
    let world = World::with_small();
    expect(
        &world,
        "start $snowmelt run small -it -- no-such-command
        expect eof {}
        if {[llength [split [string trim $expect_out(buffer)] \\n]] != 1} { wanted \"one line\" }
        set result [wait]
        exit [expr {[lindex $result 3] == 127 ? 0 : 98}]",
    );
}

#[test]
fn the_terminal_is_as_it_was_even_after_a_kill() {
    // runc makes it raw, and cannot put it back when it is killed.
    let world = World::with_small();
    let runtimes = world.text("state/runtime");
    for victims in ["runc --root", "snowmelt agent"] {
        expect(
            &world,
            &format!(
                "start sh
                expect -re {{[#$] }}
                set before [exec stty -g < $spawn_out(slave,name)]
                send \"$snowmelt run small -it -- sh -c 'echo rea''dy; sleep 1000'; echo en''ded\\r\"
                expect ready
                set during [exec stty -g < $spawn_out(slave,name)]
                if {{$during == $before}} {{ wanted \"a raw terminal\" }}
                foreach pid [exec pgrep -f {{{victims}}}] {{
                    catch {{
                        set environment [open /proc/$pid/environ]
                        if {{[string match *{runtimes_of}* [read $environment]]}} {{ exec kill -KILL $pid }}
                    }}
                }}
                expect ended
                set after [exec stty -g < $spawn_out(slave,name)]
                if {{$after != $before}} {{ wanted \"the terminal as it was: $before, not $after\" }}
                send \"exit\\r\"
                set wanted_code 0
                {EXIT_CODE}",
                runtimes_of = runtimes.trim_end_matches("/runtime"),
            ),
        );
    }
    world.run(&[], &["true"]).success();
    world.assert_nothing_left();
}

#[test]
fn a_container_does_not_outlive_its_terminal() {
    // `sleep` as the first process ignores HUP and TERM: it went on with nobody able to reach it.
    let world = World::with_small();
    expect(
        &world,
        "start $snowmelt run small -it -- sh -c \"echo ready; read line; echo container-\\$line-runs; exec sleep 1000\"
        expect ready
        send \"two\\r\"
        expect container-two-runs
        close
        exit 0",
    );
    world.assert_nothing_left();
}

#[test]
fn a_terminal_needs_a_terminal() {
    let world = World::with_small();
    world.run(&["-i", "-t"], &["sh"]).failure(125, &["terminal"]);
}

//! Waits of at least the threshold as metrics: by where they are in the program's own code, and by peer.

use gotrace_common::Histogram;

use super::{Samples, Series, Value, WAIT_PEER, WAIT_TIME};
use crate::{Peer, Places};

impl Samples<'_> {
    pub(super) fn wait_time(&mut self, places: &Places) {
        let (by_function, mut beyond) = places.by_function();
        let mut series = Vec::new();
        for (reason, function, ns) in by_function {
            if self.admitted.own_code(&reason, &function) {
                series.push((Series::OwnCode(reason, function), Value::Nanoseconds(ns)));
            } else {
                beyond = u64::saturating_add(beyond, ns);
            }
        }
        if beyond > 0 {
            series.push((Series::Overflow, Value::Nanoseconds(beyond)));
        }
        self.push(&WAIT_TIME, series);
    }

    pub(super) fn peers(&mut self, places: &Places) {
        let (mut series, mut beyond) = (Vec::new(), None::<Box<Histogram>>);
        for ((peer, function), waits) in places.by_peer() {
            match peer {
                Peer::At(peer) if self.admitted.peer((peer, function.as_ref()), self.room) => {
                    series.push((Series::Peer(peer, function), Value::Durations(Box::new(waits))));
                }
                _ => beyond.get_or_insert_default().merge(&waits),
            }
        }
        series.extend(beyond.map(|waits| (Series::Overflow, Value::Durations(waits))));
        self.push(&WAIT_PEER, series);
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use super::super::{
        LabelValue,
        admission::{Admitted, Room, SeriesBounds, Weights},
        samples,
    };
    use super::*;
    use crate::samples as sample;

    #[test]
    fn peers_have_series_of_their_own_and_the_others_one() {
        let mut interval = sample::interval(&sample::resource(), 10, Vec::new());
        let mut places = sample::places();
        let query = places.places[0].clone();
        let beyond = crate::Place { peer: Some(Peer::Other), ..query.clone() };
        let elsewhere = crate::Place { at: None, ..query.clone() };
        let line = crate::Location { line: 41, ..(**query.at.as_ref().expect("a place")).clone() };
        let beside = crate::Place { at: Some(line.into()), ..query };
        places.places.extend([beyond.clone(), beyond, elsewhere, beside]);
        interval.waits_at = Arc::new(places);
        let mut room = Room::new(SeriesBounds::default(), Weights::OTLP);
        let all = samples(&interval, &BTreeMap::new(), &mut Admitted::default(), &mut room);
        let peers = all.iter().find(|s| s.metric.name == WAIT_PEER.name).expect("there are peers");
        let told: Vec<_> = peers
            .series
            .iter()
            .map(|(series, value)| match value {
                Value::Durations(waits) => (series.labels(), waits.count, waits.sum_ns),
                other => panic!("{other:?}"),
            })
            .collect();
        let database = vec![
            ("network.peer.address", LabelValue::Text("10.0.3.7".into())),
            ("network.peer.port", LabelValue::Int(5432)),
        ];
        let query = ("gotrace.own_code.function.name", LabelValue::Text("main.query".into()));
        let from_query = [&database[..], &[query]].concat();
        let other = vec![("otel.metric.overflow", LabelValue::Bool(true))];
        assert_eq!(told, [(database, 2, 81_000_000), (from_query, 4, 162_000_000), (other, 4, 162_000_000)]);
    }

    #[test]
    fn a_process_has_no_more_series_of_peers_than_it_may() {
        let mut interval = sample::interval(&sample::resource(), 10, Vec::new());
        let query = sample::places().places[0].clone();
        let of = |n: u32| {
            let at = crate::Location {
                function: format!("main.f{n:02}").into(),
                ..(**query.at.as_ref().expect("a place")).clone()
            };
            crate::Place { at: Some(at.into()), ..query.clone() }
        };
        interval.waits_at = Arc::new(Places { places: (0..40).map(of).collect(), ..Places::default() });
        let mut room = Room::new(SeriesBounds::default(), Weights::OTLP);
        let all = samples(&interval, &BTreeMap::new(), &mut Admitted::default(), &mut room);
        let peers = all.iter().find(|s| s.metric.name == WAIT_PEER.name).expect("there are peers");
        assert_eq!(peers.series.len(), 33);
        let Some((Series::Overflow, Value::Durations(waits))) = peers.series.last() else {
            panic!("{peers:?}")
        };
        assert_eq!(waits.count, 8 * query.waits.count);
    }
}

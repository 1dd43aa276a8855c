import Foundation
import LightningPruneLogic

/// examples/shared/vectors.json, as scripts/make_vectors.py writes it.
struct Vectors: Decodable {
  let manifests: [ManifestCase]
  let files: [FileCase]
  let images: [ImageCase]
  let pictures: [PictureCase]
  let unfit_inputs: [SpecCase]
  let drawings: [DrawingCase]
  let scores: [ScoreCase]
  let answers: [AnswerCase]
  let readings: [ReadingCase]
  let timings: [TimingCase]
  let sessions: [SessionCase]
  let framings: [FramingCase]
  let probe_plans: [ProbePlanCase]
  let probe_runs: [ProbeRunCase]

  static func load() throws -> Vectors {
    let examples = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent().deletingLastPathComponent()
    return try JSONDecoder().decode(Vectors.self, from: Data(contentsOf: examples.appendingPathComponent("shared/vectors.json")))
  }
}

struct ManifestCase: Decodable {
  let name: String
  let text: String
  let holds: Holds?
}

struct Holds: Decodable {
  let program: String
  let sha256: String
  let size_bytes: Int
  let data: [String]
  let labels: [String]
  let methods: [String: [Int]]
  let shape: [Int]
  let dynamic: [String: [Int]]
  let picture: FitCase
  let feeds: [[FeedPart]]
  let state: [String]
}

/// A name or a number.
enum FeedPart: Decodable, Equatable {
  case name(String)
  case number(Float)

  init(from decoder: Decoder) throws {
    let container = try decoder.singleValueContainer()
    if let name = try? container.decode(String.self) {
      self = .name(name)
    } else {
      self = .number(Float(try container.decode(Double.self)))
    }
  }
}

struct FitCase: Decodable {
  let fit: String
  let resize: Int?
  let fill: Int?
  let mean: [Double]?
  let std: [Double]?

  func spec() throws -> PictureSpec {
    let fits: [String: Fit] = ["crop": .crop(resize: resize), "stretch": .stretch, "pad": .pad(fill: fill ?? -1)]
    return try PictureSpec(fits[fit]!, mean: mean ?? [], std: std ?? [])
  }
}

struct FileCase: Decodable {
  let name: String
  let base64: String
  let same: Bool
}

struct SpecCase: Decodable {
  let name: String
  let shape: [Int]
  let dtype: String
  let dynamic: [String: [Int]]?

  var spec: TensorSpec { TensorSpec(name: name, shape: shape, dtype: dtype, dynamic: ranges(dynamic ?? [:])) }
}

struct ImageCase: Decodable {
  let size: [Int]
  let pixels: [Float]
  let input: SpecCase
  let shape: [Int]
  let values: [Float]
}

struct PictureCase: Decodable {
  let size: [Int]
  let rotation: Int
  let pixels: [UInt32]
  let picture: FitCase
  let input: SpecCase
  let placement: [Int]
  let values: [Float]
}

struct DrawingCase: Decodable {
  let size: Int
  let radius: Double
  let lines: [[Double]]
  let pixels: [Float]
  let side: Int
  let framed: [Float]
}

/// A number, or one of the words "nan", "inf", "-inf".
struct Score: Decodable {
  let value: Float

  init(from decoder: Decoder) throws {
    let container = try decoder.singleValueContainer()
    if let word = try? container.decode(String.self) {
      value = word == "nan" ? .nan : word == "inf" ? .infinity : -.infinity
    } else {
      value = Float(try container.decode(Double.self))
    }
  }
}

struct ScoreCase: Decodable {
  let scores: [Score]
  let `class`: Int?
  let softmax: [Float]?
}

struct AnswerCase: Decodable {
  let output: [Float]
  let spec: SpecCase
  let labels: [String]
  let `class`: Int?
  let label: String?
}

struct ReadingCase: Decodable {
  struct Thing: Decodable {
    let area: [Float]
    let index: Int
    let label: String
    let confidence: Float
  }

  let output: [Float]
  let spec: SpecCase
  let labels: [String]
  let place: [Int]
  let boxes: [Thing]?
  let size: [Int]?
  let classes: [Int]?
  let area: [Float]?
}

struct SessionCase: Decodable {
  struct FeedCase: Decodable {
    let input: String
    let output: String
    let first: Float
  }

  struct Method: Decodable {
    let inputs: [SpecCase]
    let outputs: [SpecCase]
    let feeds: [FeedCase]?

    var spec: MethodSpec {
      MethodSpec(
        inputs: inputs.map(\.spec), outputs: outputs.map(\.spec),
        feeds: (feeds ?? []).map { Feed(input: $0.input, output: $0.output, first: $0.first) })
    }
  }

  struct Event: Decodable {
    let `do`: String
    let inputs: [[Float]]?
    let gives: Given?
    let first: [String: [Float]]?
    let refused: Bool?
    let `is`: [String: [Float]]?
    let prompt: [Int]?
    let max: Int?
    let stop: [Int]?
  }

  /// Values of each output, or tokens.
  struct Given: Decodable {
    let values: [[Float]]
    let tokens: [Int]

    init(from decoder: Decoder) throws {
      let container = try decoder.singleValueContainer()
      values = (try? container.decode([[Float]].self)) ?? []
      tokens = values.isEmpty ? try container.decode([Int].self) : []
    }
  }

  let spec: Method
  let keeps: [String]
  let weights: [Float]?
  let events: [Event]
  let restarts: Int
}

struct TimingCase: Decodable {
  let milliseconds: [Double]
  let median: Double?
  let spread: Double?
  let fastest: Double?
  let p90: Double?
}

struct FramingCase: Decodable {
  let window: Int
  let hop: Int
  let sizes: [Int]?
  let samples: [Int16]?
  let done: [Int]?
  let frames: [Float]?
}

func ranges(_ limits: [String: [Int]]) -> [Int: ClosedRange<Int>] {
  Dictionary(uniqueKeysWithValues: limits.map { (Int($0.key)!, $0.value[0]...$0.value[1]) })
}

struct ProbePlanCase: Decodable {
  let name: String
  let text: String
  let tells: String?
  let holds: ProbeHolds?
}

struct ProbeHolds: Decodable {
  let digest: String
  let name: String
  let threads: Int
  let passes: Int
  let rounds: Int
  let files: [String: String]
  let turns: [[String]]
  let programs: [ProbeProgramCase]
}

struct ProbeProgramCase: Decodable, Equatable {
  let name: String
  let file: String
  let method: String
  let shapes: [[Int]]
  let dtypes: [String]
}

struct ProbeRunCase: Decodable {
  let tick: Int
  let costs: [String: UInt64]
  let missing: [String]
  let failing: [String]
  let calls: [String]
  let counts: [Int]
  let results: String
}

import SwiftUI

/// Run the program many times: median and spread, beside what the manifest says of the file.
struct BenchmarkScreen: View {
  @ObservedObject var program: ProgramModel
  private let rounds = 100

  var body: some View {
    VStack(spacing: 24) {
      Button("Run \(rounds) rounds") { program.benchmark(rounds: rounds) }
        .buttonStyle(.borderedProminent)
        .disabled(program.isBusy)
      Text(program.statistics).font(.body.monospacedDigit()).accessibilityIdentifier("statistics")
    }
    .padding()
  }
}
